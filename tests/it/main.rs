//! Tests against real servers, through the doors that users use.

mod support;

mod askers;
mod bad_input;
mod contract;
mod docs;
mod ecr;
mod layout;
mod layouts;
mod memory_bound;
mod metrics;
mod moto;
mod promote;
mod running;
mod table;
mod tools;
mod unit;
