//! blobferry promotes container images from a staging registry to production: it hashes every byte,
//! transfers every blob once, pushes manifests verbatim and moves the tag last.
//!
//! The layers, the lowest at the bottom. A module uses only lower layers:
//!
//! | layer | modules | content |
//! |---|---|---|
//! | 9 | [`cli`], [`demo`] | arguments in, exit code out; two loopback registries and a sample |
//! | 8 | [`commands`], [`daemon`], [`migrate`] | copy, promote, check without a daemon; runs and drains the parts; configs of other tools |
//! | 7 | [`admin`], [`config`], [`parts`] | HTTP; the file and its typed settings; builds every part |
//! | 6 | [`watch`] | poll, ping, receivers, queues, signal → event → queue → scheduling |
//! | 5 | [`look`], [`status`] | listings → rules → comparison → jobs; a snapshot for others |
//! | 4 | [`transfer`], [`gate`], [`notify`] | job → survey → plan → carry → verdict → name → settle; the judgements before a name; changes told to others |
//! | 3 | [`index`], [`ledger`] | SQLite: hints and open uploads; outcomes and decisions |
//! | 2 | [`registry`], [`layout`], [`ecr`], [`sqs`], [`aws`], [`backend`], [`oidc`] | distribution client, image-layout directory, AWS control plane, its queues, its credentials, any backend; tokens of others |
//! | 1 | [`endpoint`], [`route`], [`job`], [`decision`], [`set`] | source and destination; rules and patterns, pure; plain data; what people ordered, pure; images that move together, pure |
//! | 0 | [`oci`], [`fault`] | the types of the specifications; classes of failure |
//!
//! Small shared modules stand beside layers 0 to 3: [`sqlite`] (connections and their threads),
//! [`state`] (the state folder), [`single_flight`] (one run of a piece of work for all its
//! callers), [`telemetry`] (logs), [`metrics`] (series that end), [`clock`] (the time of day),
//! [`random`], [`backoff`] (waits that double), [`token_bucket`] (a rate), [`tls`] (of the
//! listener), [`week`] (hours of the week), [`user`] (the names of users), [`glob`] (patterns of
//! identities), [`body`] (bounded answers), [`service`] (clients of services beside the registries) and
//! [`byte_threads`] (what carries large bodies).

// The futures of commands nest deeper than the usual limit of the compiler.
#![recursion_limit = "256"]

pub mod admin;
pub mod aws;
pub mod backend;
pub mod backoff;
pub mod body;
pub mod byte_threads;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod decision;
pub mod demo;
pub mod ecr;
pub mod endpoint;
pub mod fault;
pub mod gate;
pub mod glob;
pub mod index;
pub mod job;
pub mod layout;
pub mod ledger;
pub mod look;
pub mod metrics;
pub mod migrate;
pub mod notify;
pub mod oci;
pub mod oidc;
pub mod parts;
pub mod random;
pub mod registry;
pub mod route;
pub mod service;
pub mod set;
pub mod single_flight;
pub mod sqlite;
pub mod sqs;
pub mod state;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod token_bucket;
pub mod transfer;
pub mod user;
pub mod watch;
pub mod week;

/// The revision that was built, as the build script found it; `unknown` outside of a repository.
pub const REVISION: &str = env!("BLOBFERRY_REVISION");
