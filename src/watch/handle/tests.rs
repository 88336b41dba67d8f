use super::*;
use crate::job::{Look, Outcome, Settled, Totals};

fn job(result: Outcome, text: usize) -> Settled {
    Settled {
        reasons: vec!["x".repeat(text)],
        ..Settled::sample(result)
    }
}

fn look(results: &[Outcome], text: usize) -> Arc<Look> {
    let mut totals = Totals::default();
    results.iter().for_each(|result| totals.add(*result));
    Arc::new(Look {
        jobs: results.iter().map(|result| job(*result, text)).collect(),
        totals,
        found: true,
        ..Look::default()
    })
}

async fn asked(
    handle: &Handle,
    events: &mut mpsc::Receiver<Event>,
    all: bool,
    queued: usize,
) -> (Ticket, Reply) {
    let options = PassOptions {
        all,
        ..PassOptions::default()
    };
    let (ticket, looks) = tokio::join!(
        handle.ask(Scope::default(), Cause::Ping, Actor::daemon(), options),
        async {
            let reply = events.recv().await.unwrap().reply.unwrap();
            let _ = reply.queued.send(queued);
            reply.looks
        }
    );
    (
        ticket.unwrap(),
        Reply {
            queued: tokio::sync::oneshot::channel().0,
            looks,
        },
    )
}

#[tokio::test]
async fn a_pass_that_was_given_up_is_interrupted() {
    let (sender, mut events) = mpsc::channel(8);
    let handle = Handle::new(sender, Board::default());
    let (ticket, reply) = asked(&handle, &mut events, false, 2).await;
    reply.looks.send(look(&[Outcome::Promoted], 0)).unwrap();
    drop(reply);
    let report = ticket.settled().await.unwrap();
    assert_eq!(
        (
            report.exit_code,
            report.totals.promoted,
            report.totals.interrupted
        ),
        (130, 1, 1)
    );
}

#[tokio::test]
async fn only_who_asked_for_all_reads_of_all() {
    let (sender, mut events) = mpsc::channel(8);
    let handle = Handle::new(sender, Board::default());
    let shared = look(&[Outcome::Promoted, Outcome::UpToDate], 0);
    for (all, listed) in [(true, 2), (false, 1)] {
        let (ticket, reply) = asked(&handle, &mut events, all, 1).await;
        reply.looks.send(shared.clone()).unwrap();
        let report = ticket.settled().await.unwrap();
        assert_eq!((report.jobs.len(), report.totals.up_to_date), (listed, 1));
    }
}

#[tokio::test]
async fn old_passes_keep_their_totals_when_room_is_short() {
    let (sender, mut events) = mpsc::channel(8);
    let handle = Handle::new(sender, Board::default());
    let large = 3 * REMEMBERED_BYTES / 5;
    let shared = look(&[Outcome::Conflict], large);
    let mut ids = Vec::new();
    for shown in [look(&[Outcome::Conflict], large), shared.clone(), shared] {
        let (ticket, reply) = asked(&handle, &mut events, false, 1).await;
        ids.push(ticket.run.id.clone());
        reply.looks.send(shown).unwrap();
        ticket.settled().await.unwrap();
        tokio::task::yield_now().await;
    }
    let reports: Vec<_> = ids
        .iter()
        .map(|id| handle.run(id).unwrap().report().unwrap())
        .collect();
    assert_eq!(
        reports
            .iter()
            .map(|report| report.jobs.len())
            .collect::<Vec<_>>(),
        [0, 1, 1],
        "what is shared counts once"
    );
    assert!(
        reports
            .iter()
            .all(|report| report.exit_code == 4 && report.totals.conflict == 1)
    );
}

#[tokio::test]
async fn a_pass_that_nobody_can_read_of_is_not_followed() {
    let (sender, mut events) = mpsc::channel(8);
    let handle = Handle::new(sender, Board::default());
    let (ticket, first) = asked(&handle, &mut events, false, 1).await;
    drop(ticket);
    for _ in 0..REMEMBERED {
        drop(asked(&handle, &mut events, false, 1).await);
    }
    first.looks.closed().await;
}
