use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::read::HashedFrame;
use super::*;
use crate::byte_threads::ByteThreads;
use crate::endpoint::BlobBody;
use crate::fault::{Class, Fault};

const MIB: usize = 1024 * 1024;

fn origin(name: &str) -> Origin {
    Origin::new(&format!("http://{name}"))
}

fn enter(fan_out: &FanOut, destination: &str) -> GroupMember {
    fan_out.enter(
        &origin("staging"),
        &"app".parse().unwrap(),
        &"v1".parse().unwrap(),
        &origin(destination),
    )
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
        Box::pin(async move {
            Ok(BlobBody::new(StreamBody::new(futures::stream::iter(
                frames,
            ))))
        })
    })
}

async fn next(reader: &mut Reader) -> Option<Result<HashedFrame, Fault>> {
    std::future::poll_fn(|cx| reader.poll_frame(cx)).await
}

async fn drain(mut reader: Reader) -> Result<usize, Fault> {
    let mut bytes = 0;
    while let Some(frame) = next(&mut reader).await {
        bytes += frame?.bytes.len();
        tokio::task::yield_now().await;
    }
    Ok(bytes)
}

#[tokio::test(start_paused = true)]
async fn each_byte_is_read_once_for_all() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let members = ["a", "b", "c"].map(|name| enter(&fan_out, name));
    let readers = members.each_ref().map(|member| {
        member
            .reader(&digest, 40 << 20, || source(40, &count))
            .unwrap()
    });
    let all = futures::future::join_all(readers.map(drain)).await;
    assert!(all.into_iter().all(|bytes| bytes.unwrap() == 40 * MIB));
    assert_eq!(count.load(Ordering::Relaxed), 40 * MIB);
    assert!(fan_out.lock().reads.is_empty());
    assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
    drop(members);
    assert!(fan_out.lock().groups.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_reads_alone() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let only = enter(&fan_out, "a");
    assert!(
        only.reader(&digest, 1 << 20, || source(1, &count))
            .is_none()
    );
    let other = enter(&fan_out, "b");
    other.settled(&digest);
    assert!(
        only.reader(&digest, 1 << 20, || source(1, &count))
            .is_none(),
        "the other one has it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_small_blob_waits_for_those_who_come_later() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let early = enter(&fan_out, "a");
    let late = enter(&fan_out, "b");
    let never = enter(&fan_out, "c");
    assert_eq!(
        drain(
            early
                .reader(&digest, 3 << 20, || source(3, &count))
                .unwrap()
        )
        .await
        .unwrap(),
        3 * MIB
    );
    assert_eq!(
        drain(late.reader(&digest, 3 << 20, || source(3, &count)).unwrap())
            .await
            .unwrap(),
        3 * MIB
    );
    assert_eq!(count.load(Ordering::Relaxed), 3 * MIB);
    assert_eq!(fan_out.lock().reads.len(), 1);
    drop(never);
    assert!(fan_out.lock().reads.is_empty());
    assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_lags_is_left_behind_after_a_while() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let fast = enter(&fan_out, "a");
    let stuck = enter(&fan_out, "b");
    let missing = enter(&fan_out, "c");
    let reader = fast
        .reader(&digest, 100 << 20, || source(100, &count))
        .unwrap();
    let stands = stuck
        .reader(&digest, 100 << 20, || source(100, &count))
        .unwrap();
    let start = Instant::now();
    assert_eq!(drain(reader).await.unwrap(), 100 * MIB);
    assert!(
        start.elapsed() <= SharedReads::default().grace * 2,
        "held back for {:?}",
        start.elapsed()
    );
    assert_eq!(count.load(Ordering::Relaxed), 100 * MIB);
    assert_eq!(drain(stands).await.unwrap_err().class(), Class::RETRYABLE);
    assert!(
        missing
            .reader(&digest, 100 << 20, || source(100, &count))
            .is_none_or(|reader| reader.is_first)
    );
    assert!(
        missing.group.lock().slow.contains(&origin("c")),
        "it is not waited for again"
    );
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_not_waited_for() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let fast = enter(&fan_out, "a");
    let gone = enter(&fan_out, "b");
    let reader = fast
        .reader(&digest, 30 << 20, || source(30, &count))
        .unwrap();
    let left = gone
        .reader(&digest, 30 << 20, || source(30, &count))
        .unwrap();
    let start = Instant::now();
    let (read, ()) = tokio::join!(drain(reader), async { drop(left) });
    assert_eq!(read.unwrap(), 30 * MIB);
    assert!(start.elapsed().is_zero());
}

fn of_app(fan_out: &FanOut, app: &str) -> GroupMember {
    fan_out.enter(
        &origin("staging"),
        &app.parse().unwrap(),
        &"v1".parse().unwrap(),
        &origin("production"),
    )
}

fn assert_empty(fan_out: &FanOut) {
    let table = fan_out.lock();
    assert!(table.reads.is_empty() && table.groups.is_empty() && table.needs.is_empty());
    assert!(table.slow.is_empty() && table.readers.is_empty());
    assert_eq!(table.kept.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn repositories_that_need_the_bytes_share_a_read_whatever_their_names_are() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let members = ["a", "b", "c"].map(|app| of_app(&fan_out, app));
    members[0].needs(&digest);
    members[1].needs(&digest);
    // The third begins a moment later, when the first has a part of the start already.
    let first = members[0]
        .reader(&digest, 40 << 20, || source(40, &count))
        .unwrap();
    let mut first = first;
    next(&mut first).await.unwrap().unwrap();
    members[2].needs(&digest);
    let readers = [1, 2].map(|number| {
        members[number]
            .reader(&digest, 40 << 20, || source(40, &count))
            .unwrap()
    });
    let rest = async {
        while let Some(frame) = next(&mut first).await {
            frame.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (all, ()) = tokio::join!(futures::future::join_all(readers.map(drain)), rest);
    assert!(all.into_iter().all(|bytes| bytes.unwrap() == 40 * MIB));
    assert_eq!(count.load(Ordering::Relaxed), 40 * MIB);
    drop((first, members));
    assert_empty(&fan_out);
}

#[tokio::test(start_paused = true)]
async fn the_start_lingers_for_those_of_whom_nobody_knows_and_nobody_waits() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let early = of_app(&fan_out, "a");
    let late = of_app(&fan_out, "b");
    early.needs(&digest);
    let reader = early
        .reader(&digest, 100 << 20, || source(100, &count))
        .unwrap();
    let start = Instant::now();
    assert_eq!(drain(reader).await.unwrap(), 100 * MIB);
    assert!(
        start.elapsed().is_zero(),
        "it waited for somebody who did not come"
    );
    late.needs(&digest);
    assert_eq!(
        drain(
            late.reader(&digest, 100 << 20, || source(100, &count))
                .unwrap()
        )
        .await
        .unwrap(),
        100 * MIB
    );
    assert_eq!(count.load(Ordering::Relaxed), 200 * MIB);
    drop((early, late));
    assert_empty(&fan_out);
}

#[tokio::test(start_paused = true)]
async fn who_stands_in_line_for_the_same_registry_is_not_waited_for_and_sits_anew() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let members = ["a", "b", "c"].map(|app| of_app(&fan_out, app));
    members.iter().for_each(|member| member.needs(&digest));
    let [first, second, third] = members.each_ref().map(|member| {
        member
            .reader(&digest, 30 << 20, || source(30, &count))
            .unwrap()
    });
    let start = Instant::now();
    assert_eq!(drain(first).await.unwrap(), 30 * MIB);
    assert!(start.elapsed().is_zero());
    assert!(second.is_lost() && third.is_lost());
    let again = [1, 2].map(|number| {
        members[number]
            .reader(&digest, 30 << 20, || source(30, &count))
            .unwrap()
    });
    assert!(
        futures::future::join_all(again.map(drain))
            .await
            .into_iter()
            .all(|bytes| bytes.unwrap() == 30 * MIB)
    );
    assert_eq!(
        count.load(Ordering::Relaxed),
        60 * MIB,
        "those who were left share the next read"
    );
    drop((second, third, members));
    assert_empty(&fan_out);
}

#[tokio::test(start_paused = true)]
async fn what_one_repository_lacks_another_may_hold() {
    let fan_out = FanOut::default();
    let digest = Digest::sha256(b"x");
    let lacking = of_app(&fan_out, "a");
    let holding = of_app(&fan_out, "b");
    lacking.needs(&digest);
    holding.needs(&digest);
    let gone = || -> Open { Box::new(|_| Box::pin(async { Err(Fault::not_found("gone")) })) };
    let own = lacking.reader(&digest, 1 << 20, gone).unwrap();
    let foreign = holding.reader(&digest, 1 << 20, gone).unwrap();
    assert_eq!(drain(own).await.unwrap_err().class(), Class::NotFound);
    assert_eq!(
        drain(foreign).await.unwrap_err().class(),
        Class::RETRYABLE,
        "it asks its own repository"
    );
}

#[tokio::test(start_paused = true)]
async fn a_frame_carries_the_hash_of_all_up_to_its_end() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let members = ["a", "b"].map(|name| enter(&fan_out, name));
    let readers = members.each_ref().map(|member| {
        member
            .reader(&digest, 3 << 20, || source(3, &count))
            .unwrap()
    });
    for mut reader in readers {
        let mut read = Vec::new();
        while let Some(frame) = next(&mut reader).await {
            let frame = frame.unwrap();
            read.extend_from_slice(&frame.bytes);
            assert_eq!(frame.hasher.finish(), Digest::sha256(&read));
        }
        assert_eq!(read.len(), 3 * MIB);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_reader_chooses_the_thread_of_all() {
    let fan_out = FanOut::default();
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let members = ["a", "b"].map(|name| enter(&fan_out, name));
    let [first, second] = members.each_ref().map(|member| {
        member
            .reader(&digest, 3 << 20, || source(3, &count))
            .unwrap()
    });
    let threads = ByteThreads::new(std::num::NonZeroUsize::new(2).unwrap());
    let chosen = first.byte_thread(|| threads.least_loaded());
    let joined = second.byte_thread(|| panic!("the thread is chosen"));
    assert_eq!(format!("{joined:?}"), format!("{chosen:?}"));
}

/// The only reader has taken all 8 MiB of a full window, and the start may linger for 16 MiB. Such
/// a reader once looped within one poll: it dropped nothing and read nothing.
#[tokio::test(start_paused = true)]
async fn a_full_window_ends_lingering() {
    let bounds = SharedReads {
        window: 8 * MIB,
        linger: 16 * MIB,
        all_windows: 64 * MIB,
        ..SharedReads::default()
    };
    let fan_out = FanOut::new(bounds, &Admission::default());
    let count = Arc::default();
    let digest = Digest::sha256(b"x");
    let only = of_app(&fan_out, "a");
    let other = of_app(&fan_out, "b");
    only.needs(&digest);
    let reader = only
        .reader(&digest, 30 << 20, || source(30, &count))
        .unwrap();
    let start = Instant::now();
    assert_eq!(drain(reader).await.unwrap(), 30 * MIB);
    assert!(
        start.elapsed().is_zero(),
        "it waited for an unannounced job"
    );
    assert_eq!(count.load(Ordering::Relaxed), 30 * MIB);
    drop((only, other));
    assert_empty(&fan_out);
}
