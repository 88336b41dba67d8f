//! blobferry mirrors container images from a staging registry to production: every byte hashed where it passes, every
//! blob once, the manifests verbatim, the tag last.
//!
//! The floors of the house, ground floor at the bottom; a floor uses only the floors below it:
//!
//! | floor | modules | what is there |
//! |---|---|---|
//! | 8 | [`cli`], [`demo`] | arguments in, exit code out; two loopback registries and a sample |
//! | 7 | [`daemon`], [`config`] | builds every part, runs them, drains them; the file and its typed settings |
//! | 6 | [`admin`] | HTTP over TCP and the control socket: metrics, health, status, triggers |
//! | 5 | [`watch`] | poll, ping, signal → event → queue → look → jobs |
//! | 4 | [`transfer`] | job → survey → plan → carry → verdict → name → outcome |
//! | 3 | [`index`], [`ledger`], [`sqlite`], [`state`] | SQLite: hints and open uploads; what happened; the threads and the folder under both |
//! | 2 | [`registry`], [`layout`], [`ecr`], [`site`] | distribution client, image-layout directory, AWS control plane, any of them |
//! | 1 | [`endpoint`], [`allowance`], [`job`] | the seam to what holds images, and what it still allows; what is asked and what came of it |
//! | 0 | [`oci`], [`fault`], [`flight`] | the specifications' words as types; classes of failure; one run for all who wait |
//!
//! [`telemetry`] sets up logs, [`clock`] tells the time of day, [`random`] draws by chance; they stand beside the floors.

pub mod admin;
pub mod allowance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod ecr;
pub mod endpoint;
pub mod fault;
pub mod flight;
pub mod index;
pub mod job;
pub mod layout;
pub mod ledger;
pub mod oci;
pub mod random;
pub mod registry;
pub mod site;
pub mod sqlite;
pub mod state;
pub mod telemetry;
pub mod transfer;
pub mod watch;

/// The revision that was built, as the build script found it; `unknown` outside of a repository.
pub const REVISION: &str = env!("BLOBFERRY_REVISION");
