//! Copies and promotions that the daemon makes for a command line: it alone holds its state, and
//! what it writes it knows.

use std::sync::Arc;

use axum::http::StatusCode;
use futures::FutureExt as _;
use tokio::sync::watch as channel;

use crate::admin::{CopyHandler, CopyRequest, Refusal};
use crate::commands::{self, Context, Copy, Error, Promote};
use crate::job::{Actor, Remarks, Report};
use crate::look::topology::Topology;
use crate::parts::Parts;
use crate::transfer::Stop;

/// What the control socket is served with.
pub(super) fn handler(
    parts: &Parts,
    topology: channel::Receiver<Arc<Topology>>,
    stop: Stop,
) -> CopyHandler {
    let parts = parts.clone();
    Arc::new(move |request, actor| {
        let context = Context::of_daemon(parts.clone(), topology.clone());
        let stop = stop.clone();
        async move { fulfil(&context, request, actor, &stop).await }.boxed()
    })
}

async fn fulfil(
    context: &Context,
    request: CopyRequest,
    actor: Actor,
    stop: &Stop,
) -> Result<Report, Refusal> {
    let refused = |error: Error| Refusal::bad_request(error.to_string());
    let CopyRequest {
        copy: is_copy,
        images,
        all_tags,
        expect,
        replace,
        dry_run,
        remarks: _,
    } = request;
    if is_copy {
        let [(source, destination)] = <[_; 1]>::try_from(images)
            .map_err(|_| Refusal::bad_request("a copy is of one image"))?;
        let request = Copy {
            source,
            destination,
            expect,
            replace,
            dry_run,
            state: None,
            remarks: Remarks::default(),
        };
        let report = commands::copy_as_daemon(context, request, actor, stop)
            .await
            .map_err(refused)?;
        return report.ok_or_else(not_ours);
    }
    let request = Promote {
        images,
        all_tags,
        expect,
        replace,
        dry_run,
        state: None,
        remarks: Remarks::default(),
    };
    commands::promote_as_daemon(context, request, actor, stop)
        .await
        .map_err(refused)?
        .ok_or_else(not_ours)
}

fn not_ours() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "not_ours",
        "no route of the daemon's config leads to that destination, and its config does not have both registries",
    )
}
