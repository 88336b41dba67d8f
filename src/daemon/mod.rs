//! The daemon: builds every part, runs them, drains them.
//!
//! Start: lock the state folder, open the stores, bind the sockets, tell systemd, then look.
//! Nothing outside this machine is waited for. SIGHUP reads the config again; a bad one changes
//! nothing. SIGTERM and SIGINT drain: readiness turns 503, watchers end, running blobs end at a
//! checkpoint, jobs that only have manifests left finish; at the end of `grace`, or on a second
//! signal, the rest is dropped. The stores close after their last writer, the HTTP server stops
//! last.

mod copies;
mod decisions;
mod notifications;
mod queues;
mod why;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::notifications::Followers;
use self::queues::Consumers;
use crate::admin;
use crate::clock;
use crate::commands::resolve::idle_decisions;
use crate::config::{self, Config};
use crate::endpoint::Repositories as _;
use crate::fault::Fault;
use crate::job::Actor;
use crate::ledger::{AuditTask, Reload};
use crate::look::topology::Topology;
use crate::parts::{self, Parts};
use crate::state::{self, FolderCheck, StateLock};
use crate::status::Board;
use crate::status::board::{ConfigStatus, RegistryStatus};
use crate::tls::ServerTls;
use crate::transfer::{Limits, Stop};
use crate::watch::signal::looks;
use crate::watch::{Handle, Watch};

/// Events that may wait to be taken.
const EVENTS: usize = 1024;

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The parts cannot be built.
    #[error(transparent)]
    Parts(#[from] parts::Error),
    /// The sockets cannot be bound.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The state folder was removed or replaced while the daemon ran, and did not come back.
    #[error(transparent)]
    StateLost(#[from] state::FolderReplaced),
    /// The ledger cannot be read.
    #[error("{0}")]
    Ledger(Fault),
    /// The kernel refuses a signal handler.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

impl Error {
    /// The exit code of the process: 2, usage or configuration, for what another start cannot mend.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Parts(error) => error.exit_code(),
            // The port may be free at the next start.
            Error::Signals(_) | Error::Admin(admin::Error::Listen { .. }) => 1,
            Error::Ledger(_) => 1,
            // The next start begins with the folder that is there then.
            Error::StateLost(_) => 1,
            Error::Config(_) | Error::State(_) | Error::Admin(_) => 2,
        }
    }
}

/// How long a start waits for the state folder: a decision that is written without a daemon holds it
/// for a moment.
const FOLDER_FREE: Duration = Duration::from_secs(2);
/// How often it tries.
const AGAIN: Duration = Duration::from_millis(50);

async fn take_folder(folder: &Path) -> Result<StateLock, state::Error> {
    let began = Instant::now();
    loop {
        match StateLock::acquire(folder) {
            Err(state::Error::Held { .. }) if began.elapsed() < FOLDER_FREE => sleep(AGAIN).await,
            taken => return taken,
        }
    }
}

/// Runs the daemon until it has drained. `load` reads the config, now and on every SIGHUP. `ready`
/// is told the address of the HTTP listener once everything is bound. `stop` drains it like
/// SIGTERM.
///
/// # Errors
/// When it cannot start; once it runs, it ends well.
pub async fn run(
    load: impl Fn() -> Result<Config, config::Error>,
    ready: Option<oneshot::Sender<Option<SocketAddr>>>,
    stop: CancellationToken,
) -> Result<(), Error> {
    // First of all: a signal that comes while the daemon starts is kept, not its end.
    let signals = Signals::new().map_err(Error::Signals)?;
    let look_signals = crate::watch::signal::listen().map_err(Error::Signals)?;
    let config = load()?;
    let lock = take_folder(&config.daemon.state).await?;
    let parts = Parts::open(&lock)?.on_threads(config.daemon.threads);
    parts.ledger.in_force().await.map_err(Error::Ledger)?;
    let audit = parts
        .start_audit(config.daemon.audit_file.as_deref())
        .await?;
    let mut followers = Followers::new(parts.ledger.clone(), parts.notify.clone());
    followers
        .adopt(&config.daemon.notify)
        .await
        .map_err(Error::Ledger)?;
    let settings = admin_settings(&config, Some(lock.check()));
    let bound = admin::bind(&settings).await?;
    let topology = Arc::new(parts.topology(&config, None)?);
    let address = bound.address();
    let mut running = Running::start(
        parts,
        config,
        topology,
        bound,
        settings,
        look_signals,
        followers,
    );
    running.audit = audit;
    let listen = address.map_or_else(|| "off".to_owned(), |address| address.to_string());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen,
        routes = running.config.routes.len(),
        "started"
    );
    if running.config.daemon.tokens.is_empty()
        && address.is_some_and(|address| !address.ip().is_loopback())
    {
        tracing::warn!(
            listen,
            "the API listens beyond loopback without a token: others get metrics and health only (see `daemon.tokens`)"
        );
    }
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    if let Some(ready) = ready {
        // The caller may have gone.
        let _ = ready.send(address);
    }
    running.serve(signals, load, stop).await
}

fn admin_settings(config: &Config, folder: Option<FolderCheck>) -> admin::Settings {
    admin::Settings {
        listen: config.daemon.listen,
        socket: Some(control_socket(config)),
        folder,
        tokens: admin::Tokens::new(config.daemon.tokens.clone()),
        receivers: admin::Receivers::new(config.receivers.clone()),
        tls: ServerTls::new(config.daemon.tls.clone()),
        deadlines: admin::Deadlines::default(),
    }
}

/// The settings that only a restart can change, as the daemon was started with them.
struct FixedAtStart {
    listen: Option<SocketAddr>,
    state: PathBuf,
    audit_file: Option<PathBuf>,
    threads: NonZeroUsize,
}

impl FixedAtStart {
    fn of(config: &Config) -> FixedAtStart {
        FixedAtStart {
            listen: config.daemon.listen,
            state: config.daemon.state.clone(),
            audit_file: config.daemon.audit_file.clone(),
            threads: config.daemon.threads,
        }
    }
}

/// The settings of which the config asks for another value than the fixed one.
fn needs_restart(config: &Config, fixed: &FixedAtStart) -> Vec<&'static str> {
    let asked = FixedAtStart::of(config);
    let differs = [
        ("listen", asked.listen != fixed.listen),
        ("state", asked.state != fixed.state),
        ("audit_file", asked.audit_file != fixed.audit_file),
        ("threads", asked.threads != fixed.threads),
    ];
    let differing = differs.into_iter().filter(|(_, differs)| *differs);
    differing.map(|(name, _)| name).collect()
}

/// Where the control socket of a config's daemon is.
pub fn control_socket(config: &Config) -> PathBuf {
    config.daemon.state.join("control.sock")
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal asks for.
enum Asked {
    Reload,
    Stop,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

/// The daemon, running.
struct Running {
    parts: Parts,
    config: Config,
    topology: channel::Sender<Arc<Topology>>,
    board: Board,
    stop: Stop,
    watch: JoinSet<()>,
    helpers: JoinSet<()>,
    consumers: Consumers,
    server: JoinSet<()>,
    server_stop: CancellationToken,
    /// How long the ledger keeps texts.
    retention: channel::Sender<Duration>,
    fixed: FixedAtStart,
    /// What the sockets were bound with; the tokens are those that the server goes by.
    served: admin::Settings,
    /// Cancelled when the state folder is gone for good.
    lost: CancellationToken,
    audit: Option<AuditTask>,
    followers: Followers,
}

impl Running {
    fn start(
        parts: Parts,
        config: Config,
        topology: Arc<Topology>,
        bound: admin::Bound,
        served: admin::Settings,
        look_signals: Signal,
        followers: Followers,
    ) -> Running {
        let board = Board::over(parts.health());
        let stop = Stop::default();
        let server_stop = CancellationToken::new();
        let (events, received) = mpsc::channel(EVENTS);
        let (sender, receiver) = channel::channel(topology);
        let handle = Handle::new(events, board.clone()).counted_by(parts.watch.clone());
        let queue_metrics = parts.watch.queues.clone();
        let mut consumers = Consumers::new(handle.clone(), queue_metrics, stop.drain.clone());
        consumers.adopt(&config.queues);
        let mut helpers = JoinSet::new();
        helpers.spawn(looks(look_signals, handle.clone(), stop.drain.clone()));
        helpers.spawn(parts.clone().count_stores());
        helpers.spawn(parts.clone().prune_index());
        helpers.spawn(served.tls.clone().follow_files());
        let retention = channel::Sender::new(config.daemon.retention);
        helpers.spawn(parts.ledger.clone().drop_old_texts(retention.subscribe()));
        let lost = CancellationToken::new();
        helpers.spawn(parts.clone().watch_state(board.clone(), lost.clone()));
        helpers.spawn(feed_watchdog(parts.engine().limits.clone()));
        let mut watch = JoinSet::new();
        watch.spawn(Watch::new(receiver, board.clone(), stop.clone()).run(received));
        let doubt = decisions::clock_doubt(sender.subscribe());
        parts.ledger.doubt_clock_by(doubt);
        helpers.spawn(decisions::wake_at_ends(
            parts.ledger.clone(),
            sender.subscribe(),
            handle.clone(),
            stop.clone(),
        ));
        helpers.spawn(decisions::watch_denied(parts.ledger.clone(), {
            let parts = parts.clone();
            move |denied| parts.show_denied(denied)
        }));
        let mut server = JoinSet::new();
        let copies = copies::handler(&parts, sender.subscribe(), stop.clone());
        let decisions =
            decisions::handler(&parts, sender.subscribe(), handle.clone(), stop.clone());
        let tags = why::handler(
            &parts.ledger,
            sender.subscribe(),
            handle.clone(),
            stop.clone(),
        );
        let services = services(&parts, handle, copies, decisions, tags);
        server.spawn(bound.serve(services, server_stop.clone()));
        let running = Running {
            parts,
            fixed: FixedAtStart::of(&config),
            config,
            topology: sender,
            board,
            stop,
            watch,
            helpers,
            consumers,
            server,
            server_stop,
            retention,
            served,
            lost,
            audit: None,
            followers,
        };
        running.show_config();
        running
    }

    fn show_config(&self) {
        let config = &self.config;
        for missing in &config.missing {
            tracing::warn!(%missing, "the config names what is not there");
        }
        let topology = self.topology.borrow().clone();
        self.board.update(|status| {
            status.version = env!("CARGO_PKG_VERSION").into();
            status.started.get_or_insert(clock::now());
            // Absolute: its reader may stand in another folder.
            let path = std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone());
            let path = path.display().to_string();
            status.config = ConfigStatus {
                path,
                loaded: Some(clock::now()),
                hash: config.hash.clone(),
                refused: None,
            };
            status.registries = topology
                .backends
                .values()
                .map(|backend| RegistryStatus {
                    name: backend.name().into(),
                    url: backend.origin().to_string(),
                    ..RegistryStatus::default()
                })
                .collect();
        });
    }

    /// Answers signals until it is time to stop, then drains.
    async fn serve(
        mut self,
        mut signals: Signals,
        load: impl Fn() -> Result<Config, config::Error>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let lost = self.lost.clone();
        let ledger = self.parts.ledger.clone();
        self.idle_decisions().await;
        loop {
            let asked = stop.run_until_cancelled(lost.run_until_cancelled(signals.next()));
            match asked.await {
                Some(Some(Asked::Reload)) => self.reload(&load).await,
                Some(Some(Asked::Stop) | None) | None => break,
            }
        }
        let folder = if lost.is_cancelled() {
            ledger.check_folder()
        } else {
            Ok(())
        };
        drop(ledger);
        self.drain(&mut signals).await;
        Ok(folder?)
    }

    /// Reads the config again. A bad one is refused and the old one stays.
    async fn reload(&mut self, load: &impl Fn() -> Result<Config, config::Error>) {
        tell_systemd(&[
            sd_notify::NotifyState::Reloading,
            sd_notify::NotifyState::monotonic_usec_now()
                .unwrap_or(sd_notify::NotifyState::Reloading),
        ]);
        let before = self.topology.borrow().clone();
        let refused = match self.load(load, &before) {
            Ok((config, topology)) => {
                self.adopt(config, topology, &before);
                self.adopt_receivers().await;
                None
            }
            Err(error) => {
                tracing::error!(%error, "the config was refused; the old one stays in force");
                self.parts.watch.reloaded(false);
                self.board
                    .update(|status| status.config.refused = Some(error.to_string()));
                Some(error.to_string())
            }
        };
        self.record_reload(refused).await;
        tell_systemd(&[sd_notify::NotifyState::Ready]);
    }

    /// Says which decisions in force cover nothing under the config: a route that they name may
    /// have another name now.
    async fn idle_decisions(&self) -> Vec<String> {
        let topology = self.topology.borrow().clone();
        let holding = self.parts.ledger.holding();
        let idle = idle_decisions(holding.iter(), &topology);
        for decision in &idle {
            tracing::warn!(decision, "a decision in force covers nothing");
        }
        idle
    }

    /// Adds the reading of the config to the ledger.
    async fn record_reload(&self, error: Option<String>) {
        let reload = Reload {
            accepted: error.is_none(),
            error,
            warnings: self.idle_decisions().await,
            actor: Actor::daemon(),
            expired: false,
        };
        let facts = parts::facts(&self.config.hash);
        if let Err(fault) = self.parts.ledger.reloaded(reload, facts).await {
            tracing::error!(error = %fault.chain(), "the ledger could not be written");
        }
    }

    /// From now on the receivers of the config are told.
    async fn adopt_receivers(&mut self) {
        if let Err(fault) = self.followers.adopt(&self.config.daemon.notify).await {
            tracing::error!(error = %fault.chain(), "the receivers of notifications stay as they were");
        }
    }

    fn load(
        &self,
        load: &impl Fn() -> Result<Config, config::Error>,
        before: &Topology,
    ) -> Result<(Config, Topology), Error> {
        let config = load()?;
        let topology = self.parts.topology(&config, Some(before))?;
        Ok((config, topology))
    }

    fn adopt(&mut self, config: Config, topology: Topology, before: &Topology) {
        for what in needs_restart(&config, &self.fixed) {
            tracing::warn!(
                setting = what,
                "the config asks for another value than the running one; that takes a restart"
            );
        }
        if self.served.tokens.replace(config.daemon.tokens.clone()) {
            tracing::info!(
                "the bearer tokens have changed; only those of the config open the HTTP API"
            );
        }
        self.served.receivers.replace(config.receivers.clone());
        self.served.tls.replace(config.daemon.tls.clone());
        self.parts.withdraw(before, &topology);
        tracing::info!(
            routes = config.routes.len(),
            hash = config.hash,
            "the config was read again"
        );
        self.retention.send_replace(config.daemon.retention);
        self.consumers.adopt(&config.queues);
        self.config = config;
        self.topology.send_replace(Arc::new(topology));
        self.parts.watch.reloaded(true);
        self.show_config();
    }

    async fn drain(mut self, signals: &mut Signals) {
        let running = self.board.snapshot().jobs.len();
        tracing::info!(
            jobs = running,
            grace_seconds = self.config.daemon.grace.as_secs(),
            "draining"
        );
        tell_systemd(&[sd_notify::NotifyState::Stopping]);
        self.board.update(|status| status.draining = true);
        self.stop.drain.cancel();
        let in_time = tokio::select! {
            biased;
            () = joined(&mut self.watch) => true,
            () = stop_asked_again(signals) => false,
            () = tokio::time::sleep(self.config.daemon.grace) => false,
        };
        if !in_time {
            tracing::warn!(
                jobs = self.board.snapshot().jobs.len(),
                "not all could end in time; dropping the rest"
            );
            self.stop.abort.cancel();
            // What does not end on its own by now is ended here.
            let _ = tokio::time::timeout(Duration::from_secs(1), joined(&mut self.watch)).await;
            self.watch.shutdown().await;
        }
        self.consumers.ended().await;
        self.followers.end().await;
        self.helpers.shutdown().await;
        self.server_stop.cancel();
        joined(&mut self.server).await;
        let Running {
            parts,
            topology,
            audit,
            ..
        } = self;
        drop(topology);
        if let Some(audit) = audit {
            audit.end().await;
        }
        parts.close().await;
        tracing::info!("stopped");
    }
}

async fn joined(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn stop_asked_again(signals: &mut Signals) {
    while !matches!(signals.next().await, Asked::Stop) {}
}

fn services(
    parts: &Parts,
    handle: Handle,
    copies: admin::CopyHandler,
    decisions: admin::DecisionHandler,
    tags: admin::TagsHandler,
) -> admin::Services {
    let refreshed = parts.clone();
    admin::Services {
        watch: handle,
        ledger: parts.ledger.clone(),
        metrics: parts.registry.clone(),
        copies,
        decisions,
        tags,
        before_scrape: Arc::new(move || refreshed.refresh()),
    }
}

/// Tells systemd that we are alive, as often as it wants to hear it, unless transfers stand still
/// that could run.
async fn feed_watchdog(limits: Limits) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if limits.stand_still() {
            tracing::error!(
                "transfers stand still although some could run; systemd is not told that we are alive"
            );
        } else {
            tell_systemd(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::time::sleep(interval / 3).await;
    }
}

fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
