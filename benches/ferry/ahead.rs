//! One large layer from a registry that is far away, over connections that are slow each: by
//! blobferry, which reads ahead over several, and by crane where it is installed, in turn. Then once
//! more to a destination that is slower than one connection.

use std::sync::Arc;
use std::time::Duration;

use crate::cheap::{Cheap, Content};
use crate::limits::Limit;
use crate::link::{Link, Nature};
use crate::registry::find;
use crate::threads::{Cost, copied_by, of, synced};

/// The source: what its connections bring together, and one of them.
const FAR: Nature = Nature {
    round_trip: Duration::from_millis(80),
    bandwidth: Some(100e6),
    connection: Some(25e6),
    storm: Duration::ZERO,
};
/// A destination that is slower than one connection of the source.
const SLOW: Nature = Nature {
    connection: Some(15e6),
    ..Nature::TRANSPARENT
};

/// The size of the layer in MiB.
pub fn mebibytes(quick: bool) -> usize {
    if quick { 64 } else { 1024 }
}

/// What one run took, and what came over the link of the source.
struct Far {
    cost: Cost,
    requests: u64,
    bytes: u64,
}

/// The figures, with the limits.
pub async fn measure(quick: bool) -> (String, Vec<Limit>) {
    let content = Arc::new(Content::new(1, mebibytes(quick)));
    let source = Cheap::with(&content);
    let far = Link::before(&source.address(), FAR).await;
    let crane = find("crane");
    let mut own = Vec::new();
    let mut by_crane = Vec::new();
    for _ in 0..if quick { 1 } else { 3 } {
        let near = Cheap::without(&content);
        own.push(read(&far, &near.url(), &near).await);
        if let Some(crane) = &crane {
            let image = format!("{}/app:v1", far.address());
            by_crane.push(copied_by(crane, &image, &Cheap::without(&content)).await);
            far.take();
        }
    }
    let slow = Cheap::without(&content);
    let before_slow = Link::before(&slow.address(), SLOW).await;
    let url = format!("http://{}", before_slow.address());
    let held_up = read(&far, &url, &slow).await;

    let size = (mebibytes(quick) * 1024 * 1024) as f64;
    let last = own.last().expect("it ran");
    let (requests, bytes) = (last.requests, last.bytes as f64 / size);
    let own: Vec<Cost> = own.into_iter().map(|run| run.cost).collect();
    let mut text = "| | s | CPU s | peak MiB | requests to the source | bytes over the layer's |\n\
                    |---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    text += &row("blobferry", &own, Some((requests, bytes)));
    if !by_crane.is_empty() {
        text += &row("crane", &by_crane, None);
    }
    let in_vain = held_up.bytes as f64 / size;
    let counts = Some((held_up.requests, in_vain));
    text += &row("blobferry, slow destination", &[held_up.cost], counts);

    let wall = of(&own, |cost| cost.wall);
    let of_crane = (!by_crane.is_empty()).then(|| wall / of(&by_crane, |cost| cost.wall));
    let peak = Some(of(&own, |cost| cost.peak));
    let limits = vec![
        Limit::new("seconds over those of crane", 0.4, "", of_crane),
        Limit::new("peak memory", 64.0, " MiB", peak),
        Limit::new("bytes read over the layer's", 1.02, "", Some(bytes)),
        Limit::new("the same with a slow destination", 1.02, "", Some(in_vain)),
    ];
    (text, limits)
}

async fn read(far: &Link, to: &str, destination: &Cheap) -> Far {
    let url = format!("http://{}", far.address());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    far.take();
    let cost = synced(&url, to, destination, threads).await;
    let passed = far.take();
    Far {
        cost,
        requests: passed.requests,
        bytes: passed.down,
    }
}

fn row(name: &str, costs: &[Cost], counts: Option<(u64, f64)>) -> String {
    let wall = of(costs, |cost| cost.wall);
    let cpu = of(costs, |cost| cost.cpu);
    let peak = of(costs, |cost| cost.peak);
    let counts = match counts {
        Some((requests, bytes)) => format!("{requests} | {bytes:.3}"),
        None => "| ".to_owned(),
    };
    format!("| {name} | {wall:.1} | {cpu:.2} | {peak:.0} | {counts} |\n")
}
