use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::read::GRACE;
use super::*;
use crate::endpoint::BlobBody;
use crate::fault::{Class, Fault};

const MIB: usize = 1024 * 1024;

fn origin(name: &str) -> Origin {
    Origin::new(&format!("http://{name}"))
}

fn enter(fan_out: &FanOut, destination: &str) -> Member {
    fan_out.enter(&origin("staging"), &"app".parse().unwrap(), &"v1".parse().unwrap(), &origin(destination))
}

/// A source of so many MiB that counts what is read from it.
fn source(mebibytes: usize, count: &Arc<AtomicUsize>) -> Open {
    let count = count.clone();
    Box::new(move |offset| {
        let count = count.clone();
        let frames = (offset as usize / MIB..mebibytes).map(move |number| {
            count.fetch_add(MIB, Ordering::Relaxed);
            Ok(Frame::data(Bytes::from(vec![number as u8; MIB])))
        });
        Box::pin(async move { Ok(BlobBody::new(StreamBody::new(futures::stream::iter(frames)))) })
    })
}

async fn drain(seat: Seat) -> Result<usize, Fault> {
    let mut body = BlobBody::new(seat);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.len();
        tokio::task::yield_now().await;
    }
    Ok(bytes)
}

#[tokio::test(start_paused = true)]
async fn each_byte_is_read_once_for_all() {
    let (fan_out, count) = (FanOut::default(), Arc::default());
    let digest = Digest::sha256(b"x");
    let members = ["a", "b", "c"].map(|name| enter(&fan_out, name));
    let seats = members.each_ref().map(|member| member.seat(&digest, 40 << 20, || source(40, &count)).unwrap());
    let all = futures::future::join_all(seats.map(drain)).await;
    assert!(all.into_iter().all(|bytes| bytes.unwrap() == 40 * MIB));
    assert_eq!(count.load(Ordering::Relaxed), 40 * MIB);
    assert!(fan_out.lock().reads.is_empty());
    assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
    drop(members);
    assert!(fan_out.lock().parties.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_reads_alone() {
    let (fan_out, count) = (FanOut::default(), Arc::default());
    let digest = Digest::sha256(b"x");
    let only = enter(&fan_out, "a");
    assert!(only.seat(&digest, 1 << 20, || source(1, &count)).is_none());
    let other = enter(&fan_out, "b");
    other.settled(&digest);
    assert!(only.seat(&digest, 1 << 20, || source(1, &count)).is_none(), "the other one has it");
}

#[tokio::test(start_paused = true)]
async fn a_small_blob_waits_for_those_who_come_later() {
    let (fan_out, count) = (FanOut::default(), Arc::default());
    let digest = Digest::sha256(b"x");
    let (early, late, never) = (enter(&fan_out, "a"), enter(&fan_out, "b"), enter(&fan_out, "c"));
    assert_eq!(drain(early.seat(&digest, 3 << 20, || source(3, &count)).unwrap()).await.unwrap(), 3 * MIB);
    assert_eq!(drain(late.seat(&digest, 3 << 20, || source(3, &count)).unwrap()).await.unwrap(), 3 * MIB);
    assert_eq!(count.load(Ordering::Relaxed), 3 * MIB);
    assert_eq!(fan_out.lock().reads.len(), 1);
    drop(never);
    assert!(fan_out.lock().reads.is_empty());
    assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_lags_is_left_behind_after_a_while() {
    let (fan_out, count) = (FanOut::default(), Arc::default());
    let digest = Digest::sha256(b"x");
    let (fast, stuck, missing) = (enter(&fan_out, "a"), enter(&fan_out, "b"), enter(&fan_out, "c"));
    let seat = fast.seat(&digest, 100 << 20, || source(100, &count)).unwrap();
    let stands = stuck.seat(&digest, 100 << 20, || source(100, &count)).unwrap();
    let start = Instant::now();
    assert_eq!(drain(seat).await.unwrap(), 100 * MIB);
    assert!(start.elapsed() <= GRACE * 2, "held back for {:?}", start.elapsed());
    assert_eq!(count.load(Ordering::Relaxed), 100 * MIB);
    assert_eq!(drain(stands).await.unwrap_err().class(), Class::RETRYABLE);
    assert!(missing.seat(&digest, 100 << 20, || source(100, &count)).is_none_or(|seat| seat.is_first));
    assert!(missing.party.lock().slow.contains(&origin("c")), "it is not waited for again");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_not_waited_for() {
    let (fan_out, count) = (FanOut::default(), Arc::default());
    let digest = Digest::sha256(b"x");
    let (fast, gone) = (enter(&fan_out, "a"), enter(&fan_out, "b"));
    let seat = fast.seat(&digest, 30 << 20, || source(30, &count)).unwrap();
    let left = gone.seat(&digest, 30 << 20, || source(30, &count)).unwrap();
    let start = Instant::now();
    let (read, ()) = tokio::join!(drain(seat), async { drop(left) });
    assert_eq!(read.unwrap(), 30 * MIB);
    assert!(start.elapsed().is_zero());
}
