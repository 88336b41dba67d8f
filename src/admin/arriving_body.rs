//! The body of a request, which tells when it has arrived in full: until then its connection may be
//! closed to make room.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connections::Arrival;

/// The body of a request.
pub(super) struct ArrivingBody {
    body: Incoming,
    arrival: Arrival,
}

impl ArrivingBody {
    /// A request without a body has arrived with its head.
    pub(super) fn new(body: Incoming, arrival: Arrival) -> ArrivingBody {
        if body.is_end_stream() {
            arrival.complete();
        }
        ArrivingBody { body, arrival }
    }
}

impl Body for ArrivingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.arrival.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
