//! Admission: the order in which jobs, bodies, requests and names get their permits.
//!
//! Each kind has a pure core: events and the time in, grants out. A thin shell around it keeps the wakers and hands out
//! permits. Dropping a waiter or a permit is always safe: its place or its share is given to the next one.

mod naming;
mod wakers;

pub use self::naming::NamingPermit;
pub(super) use self::naming::NamingQueue;
