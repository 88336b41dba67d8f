//! Tests against real servers, through the doors that users use.

mod support;

mod absent;
mod askers;
mod bad_input;
mod contract;
mod cut;
mod day_two;
mod docs;
mod ecr;
mod ecr_daemon;
mod ecr_data;
mod ecr_rights;
mod ecr_trouble;
mod engine;
mod fanout;
mod kill;
mod layout;
mod layouts;
mod memory_bound;
mod metrics;
mod moto;
mod promote;
mod referrers;
mod running;
mod scripted;
mod sharing;
mod simulate;
mod stalls;
mod state_folder;
mod storm;
mod table;
mod tools;
mod unchanged;
mod unit;
mod unread;
