//! Tests against real servers, through the doors that users use.

mod support;

mod askers;
mod bad_input;
mod contract;
mod docs;
mod ecr;
mod fanout;
mod layout;
mod layouts;
mod memory_bound;
mod metrics;
mod moto;
mod promote;
mod running;
mod storm;
mod table;
mod tools;
mod unchanged;
mod unit;
