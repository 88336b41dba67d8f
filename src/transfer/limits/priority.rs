//! What a request is, and how urgent.

use std::time::Duration;

use super::RequestClass;
use crate::job::Rank;
use crate::registry::profile::Quotas;
use crate::transfer::admission::Ticket;

/// The class of a request and its place among the others.
#[derive(Clone, Copy, Debug)]
pub struct RequestPriority {
    /// Which limits it keeps to.
    pub class: RequestClass,
    /// Whether it is only for looking: then it keeps to a part of the quota.
    pub is_look: bool,
    /// How urgent it is, where no job says so.
    pub rank: Rank,
    /// The job that it belongs to: as urgent as that is by the time it is sent.
    pub(in crate::transfer) ticket: Option<u64>,
    /// How long it may wait for a registry's time, without progress; `None`: as long as the retry
    /// settings say.
    pub max_wait: Option<Duration>,
    /// Whether it is sent under a naming permit: it has the next token of the rate limiters.
    pub is_naming: bool,
}

impl From<RequestClass> for RequestPriority {
    fn from(class: RequestClass) -> RequestPriority {
        RequestPriority {
            class,
            is_look: false,
            rank: Rank::New,
            ticket: None,
            max_wait: None,
            is_naming: false,
        }
    }
}

impl RequestPriority {
    /// The same request, as urgent as that.
    pub fn ranked(self, rank: Rank) -> RequestPriority {
        RequestPriority { rank, ..self }
    }

    /// The same request, which waits for a registry's time for at most so long.
    pub fn within(self, max_wait: Duration) -> RequestPriority {
        RequestPriority {
            max_wait: Some(max_wait),
            ..self
        }
    }

    /// The same request for a job: in that job's turn.
    pub(in crate::transfer) fn of_job(self, ticket: &Ticket) -> RequestPriority {
        RequestPriority {
            ticket: Some(ticket.id()),
            rank: ticket.rank(),
            ..self
        }
    }
}

impl RequestClass {
    pub(super) const ALL: [RequestClass; 5] = [
        RequestClass::Listing,
        RequestClass::Manifests,
        RequestClass::Blobs,
        RequestClass::Uploads,
        RequestClass::Writes,
    ];

    /// For looking only.
    pub fn of_look(self) -> RequestPriority {
        RequestPriority {
            is_look: true,
            ..RequestPriority::from(self)
        }
    }

    pub(super) fn quota(self, quotas: &Quotas) -> Option<f64> {
        let quota = match self {
            RequestClass::Listing => quotas.listing,
            RequestClass::Manifests => quotas.manifests,
            RequestClass::Blobs => quotas.blobs,
            RequestClass::Uploads => quotas.uploads,
            RequestClass::Writes => quotas.writes,
        };
        quota.map(f64::from)
    }
}
