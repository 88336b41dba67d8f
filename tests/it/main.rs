//! Tests against real servers, through the doors that users use.

mod contract;
mod layout;
mod support {
    pub mod memory;
}
