//! Tests against real servers, through the doors that users use.

mod support;

mod bad_input;
mod contract;
mod cut;
mod docs;
mod ecr;
mod engine;
mod kill;
mod layout;
mod layouts;
mod memory_bound;
mod metrics;
mod promote;
mod referrers;
mod running;
mod table;
mod tools;
mod unit;
