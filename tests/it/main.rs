//! Tests against real servers, through the doors that users use.

mod support;

mod tools;
