//! A world: registries, people and processes, drawn from a seed, on a clock that leaps.
//!
//! Each seed runs on a fresh thread with a paused runtime of its own, so that nothing of one world
//! reaches another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blobferry::job::{Cause, Drift, Existing};
use blobferry::oci::{Digest, RepositoryName};
use blobferry::registry::profile::Kind;
use blobferry::watch::Scope;
use blobferry::{clock, random};
use jiff::{SignedDuration, Timestamp};

use super::chance::{Chance, Draw};
use super::guards::{Covers, GateRules, Judge, Line, START};
use super::notices::Named;
use super::oracle::{self, Finding};
use super::people::{self, Deed, Library, People};
use super::process::{Nature, Process, Setting, Stores};
use super::progress;
use super::registry::{Referrers, Registry, Settings, Sick, Trouble, TroubleKind};
use super::story;
use super::trace::{Entry, Event, Operation, Place, Rules, Trace};
use super::traits;

/// How long everything may take to become equal once all is calm.
const CALM: Duration = Duration::from_secs(45 * 60);
/// How long everything is calm at least.
const SHORT_CALM: Duration = Duration::from_secs(20);
/// How long some worlds go on when all is equal.
const AFTERWARDS: Duration = Duration::from_secs(20 * 60);

/// What came of a seed.
pub struct Outcome {
    pub seed: u64,
    pub entries: Vec<Entry>,
    pub names: BTreeMap<Digest, String>,
    pub findings: Vec<Finding>,
    pub hash: u64,
}

impl Outcome {
    /// How a promise was broken, as a story.
    pub fn story_of(&self, promise: &str) -> Option<String> {
        let finding = self
            .findings
            .iter()
            .find(|finding| finding.promise == promise)?;
        Some(format!(
            "seed {}:\n{}",
            self.seed,
            story::tell(&self.entries, &self.names, finding)
        ))
    }

    /// The first broken promise as a story; `None`: all were kept.
    pub fn story(&self) -> Option<String> {
        let finding = self.findings.first()?;
        let story = story::tell(&self.entries, &self.names, finding);
        Some(format!(
            "{} broken promises. The first:\n{story}",
            self.findings.len()
        ))
    }
}

/// Plays a seed on a thread of its own.
pub fn play(seed: u64) -> Outcome {
    on_a_fresh_clock(move || async move {
        random::seed(seed);
        clock::simulate(Timestamp::from_second(START).expect("a time of these years"));
        let world = World::draw(seed);
        let trace = world.trace.clone();
        world.live().await;
        let entries = trace.entries();
        Outcome {
            seed,
            findings: oracle::judge(&entries),
            hash: trace.hash(),
            names: trace.names(),
            entries,
        }
    })
}

/// Runs a future on a fresh thread with a paused clock.
pub fn on_a_fresh_clock<T, F>(make: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    progress::watched(progress::STILL, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.expect("a runtime needs nothing").block_on(make())
    })
}

/// A world before it begins.
pub struct World {
    pub chance: Chance,
    pub trace: Trace,
    pub registries: Vec<Registry>,
    pub routes: Vec<Rules>,
    pub nature: Nature,
    people: People,
    deeds: Vec<Deed>,
    count: u64,
    within: Duration,
    kills: u64,
    asks: u64,
    /// How many notices a deed brings: one is drawn of these.
    notices: Vec<u64>,
    slow_disk: bool,
}

/// Few tags can be rolled back: so many are looked at for one.
const TRIES: u32 = 10;

/// What happens beside the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Deed,
    Ask,
    Kill,
    Clock,
    Reload,
    Decide,
    Release,
    Promote,
    RollBack,
    Accept,
    Undo,
    PushSet,
    RefuseMember,
    PushRelease,
    MoveAlong,
}

impl World {
    /// Draws a world.
    pub fn draw(seed: u64) -> World {
        let (chance, trace) = (Chance::new(seed), Trace::begin());
        let mut draw = chance.of("world");
        let within = draw.millis(20_000, 120_000);
        let mut registries = Vec::new();
        for (side, most) in [("staging", 2), ("production", 2)] {
            for number in 1..=draw.between(1, most) {
                let name = format!("{side}-{number}");
                let settings = drawn_registry(&mut draw, side == "production", within);
                registries.push(Registry::new(&name, settings, chance, &trace));
            }
        }
        if has_panics(chance) {
            registries.iter().for_each(panics_at_times);
        }
        let routes = drawn_routes(&mut draw, &registries);
        let mut routes = varied_routes(chance.of("routes"), routes, &registries);
        if is_guarded(chance) {
            guard(chance.of("gates"), &mut routes);
        }
        traits::draw(chance, &mut routes);
        let largest = draw.pick(&[3_000, 50_000, 200_000]);
        let library = Library::new(chance, &trace, largest);
        let people = People::new(library, registries.clone(), routes.clone(), &trace);
        let deeds = drawn_deeds(&mut draw);
        let mut nature = Nature::draw(&mut draw);
        let mut bounds = chance.of("bounds");
        if bounds.percent(60) {
            nature = nature.bounded(&mut bounds);
        }
        let (count, kills) = (
            draw.between(3, 25),
            if draw.percent(40) {
                draw.between(1, 4)
            } else {
                0
            },
        );
        let asks = if draw.percent(40) {
            draw.between(1, 6)
        } else {
            0
        };
        let notices = draw.pick(&[vec![0], vec![0, 1, 1, 2], vec![1]]);
        let slow_disk = draw.percent(30);
        World {
            chance,
            trace,
            registries,
            routes,
            nature,
            people,
            deeds,
            count,
            within,
            kills,
            asks,
            notices,
            slow_disk,
        }
    }

    /// Lets everything happen, then waits until all is equal or the time for that is over.
    pub async fn live(self) {
        let World {
            chance,
            trace,
            registries,
            routes,
            nature,
            mut people,
            deeds,
            count,
            within,
            kills,
            asks,
            notices,
            slow_disk,
        } = self;
        for registry in &registries {
            let settings = registry.settings();
            let takes_artifacts = !settings.refuses_artifacts;
            let current_lists = settings.lag.is_zero() && !settings.hides_list;
            trace.note(Event::Registry {
                name: registry.name().clone(),
                current_lists,
                takes_artifacts,
                is_steady: settings.is_steady() && !has_panics(chance),
            });
        }
        note_closed(&trace, &registries, &routes);
        let mut stores = Stores::new(chance, slow_disk);
        let mut draw = chance.of("time");
        let mut happenings: Vec<(Duration, Happening)> = Vec::new();
        for (happening, count) in [
            (Happening::Deed, count),
            (Happening::Kill, kills),
            (Happening::Ask, asks),
        ] {
            happenings.extend(
                people::moments(&mut draw, count, within)
                    .into_iter()
                    .map(|at| (at, happening)),
            );
        }
        let mut clock_draw = chance.of("clock");
        let has_gates = routes
            .iter()
            .any(|rules| rules.gates != GateRules::default());
        let steps = if clock_draw.percent(25) && !has_gates {
            clock_draw.between(1, 3)
        } else {
            0
        };
        happenings.extend(
            people::moments(&mut clock_draw, steps, within)
                .into_iter()
                .map(|at| (at, Happening::Clock)),
        );
        let mut reload_draw = chance.of("reloads");
        let reloads = if reload_draw.percent(30) {
            reload_draw.between(1, 4)
        } else {
            0
        };
        happenings.extend(
            people::moments(&mut reload_draw, reloads, within)
                .into_iter()
                .map(|at| (at, Happening::Reload)),
        );
        let mut guards = chance.of("decisions");
        let often = |draw: &mut Draw| match is_guarded(chance) && draw.percent(60) {
            true => draw.between(1, 4),
            false => 0,
        };
        let decisions = often(&mut guards);
        let orders = often(&mut guards);
        let releases = guards.below(decisions + 1);
        for (happening, count) in [
            (Happening::Decide, decisions),
            (Happening::Release, releases),
            (Happening::Promote, orders),
        ] {
            let moments = people::moments(&mut guards, count, within);
            happenings.extend(moments.into_iter().map(|at| (at, happening)));
        }
        let mut rollback_draw = chance.of("rollbacks");
        let rollbacks = often(&mut rollback_draw);
        let moments = people::moments(&mut rollback_draw, rollbacks, within);
        happenings.extend(moments.into_iter().map(|at| (at, Happening::RollBack)));
        let mut accept_draw = chance.of("accepts");
        let accepts = match accept_draw.percent(25) {
            true => accept_draw.between(1, 6),
            false => 0,
        };
        let moments = people::moments(&mut accept_draw, accepts, within);
        happenings.extend(moments.into_iter().map(|at| (at, Happening::Accept)));
        let undone = accept_draw.below(accepts + 1);
        let moments = people::moments(&mut accept_draw, undone, within);
        happenings.extend(moments.into_iter().map(|at| (at, Happening::Undo)));
        let mut set_draw = chance.of("pushes to a set");
        let pushes = match routes.iter().any(|rules| rules.set.is_some()) {
            true => set_draw.between(2, 8),
            false => 0,
        };
        let moments = people::moments(&mut set_draw, pushes, within);
        happenings.extend(moments.into_iter().map(|at| (at, Happening::PushSet)));
        let mut refusing = chance.of("refused member");
        if pushes > 0 && refusing.percent(50) {
            let at = match refusing.percent(40) {
                true => Duration::ZERO,
                // By then tags are named to which there is a way back.
                false => within + refusing.millis(60_000, 240_000),
            };
            happenings.push((at, Happening::RefuseMember));
            let releases = [refusing.millis(0, 10_000), at + refusing.millis(0, 10_000)];
            happenings.extend(releases.map(|at| (at, Happening::PushRelease)));
        }
        let mut along = chance.of("moves along");
        let moves = match routes.iter().any(Rules::follows_moves) {
            true => along.between(3, 12),
            false => 0,
        };
        let moments = people::moments(&mut along, moves, within);
        happenings.extend(moments.into_iter().map(|at| (at, Happening::MoveAlong)));
        happenings.sort_unstable();
        let last = happenings.last().map(|(at, _)| *at);
        let end = last.map_or(within, |last| last.max(within));
        let judge = Arc::new(Judge::new(chance, &trace, within));
        let start = |number, stores: &Stores, routes: &[Rules]| {
            Process::start(
                number,
                &Setting {
                    stores,
                    nature,
                    registries: &registries,
                    routes,
                    trace: &trace,
                    gate_service: Some(Arc::new(Line {
                        judge: judge.clone(),
                        process: number,
                    })),
                },
            )
        };
        let mut in_force = routes.clone();
        let mut process = start(1, &stores, &in_force);
        for (nth, (at, happening)) in happenings.into_iter().enumerate() {
            tokio::time::sleep_until(trace.moment(at)).await;
            let mut draw = chance.of(("happening", nth));
            match happening {
                Happening::Deed
                | Happening::PushSet
                | Happening::PushRelease
                | Happening::MoveAlong
                | Happening::Undo => {
                    let before = named(&registries, &routes);
                    match happening {
                        Happening::PushSet => people.push_set(&mut draw),
                        Happening::PushRelease => people.push_release(&mut draw),
                        Happening::MoveAlong => people.move_along(&mut draw),
                        Happening::Undo => people.undo_accept(&mut draw),
                        _ => people.act(draw.pick(&deeds), &mut draw),
                    }
                    let changes = named(&registries, &routes);
                    for notice in changes.notices(&before, &notices, &mut draw) {
                        process.notify(notice);
                    }
                }
                Happening::RefuseMember => {
                    traits::refuse_a_member(draw, &routes, &registries);
                    note_closed(&trace, &registries, &in_force);
                }
                Happening::Ask => {
                    if let Some((rules, tag)) = people.pick_source(&mut draw) {
                        trace.note(Event::Person {
                            text: format!("asks for {tag} of route {}", rules.route),
                        });
                        let scope = Scope {
                            routes: vec![rules.route.to_string()],
                            tags: vec![tag],
                            ..Scope::default()
                        };
                        process.ask(scope, Cause::Ping);
                    }
                }
                Happening::Clock => {
                    let seconds = draw.pick(&[1_i64, 60, 3600, 86_400]);
                    let by = SignedDuration::from_secs(if draw.percent(50) {
                        seconds
                    } else {
                        -seconds
                    });
                    trace.note(Event::Person {
                        text: format!("sets the clock by {by:#}"),
                    });
                    if by.is_negative() {
                        trace.note(Event::SetBack);
                    }
                    clock::step(by);
                }
                Happening::Kill => {
                    let number = process.kill().await + 1;
                    if draw.percent(30) {
                        trace.note(Event::Person {
                            text: "cuts the power".into(),
                        });
                        stores.cut_power();
                    }
                    if draw.percent(10) {
                        trace.note(Event::Person {
                            text: "deletes the state".into(),
                        });
                        stores.lose();
                    }
                    tokio::time::sleep(draw.millis(0, 20_000)).await;
                    process = start(number, &stores, &in_force);
                }
                Happening::Decide => {
                    if let Some(covers) = people.pick_covered(&mut draw) {
                        process.decide(nth as u64, covers);
                    }
                }
                Happening::Release => process.release_one(&draw),
                Happening::Promote => {
                    if let Some((rules, tag)) = people.pick_source(&mut draw) {
                        let there = people.in_production(&rules, &tag);
                        let replace = there.filter(|_| draw.percent(30));
                        process.promote(nth as u64, &rules, &tag, replace);
                    }
                }
                Happening::RollBack => {
                    let picked = (0..TRIES).find_map(|_| people.pick_rollback(&mut draw));
                    // The daemon refuses one of a route that observes.
                    if let Some(rollback) = picked.filter(|picked| !picked.rules.observes) {
                        process.roll_back(nth as u64, rollback);
                    }
                }
                Happening::Accept => {
                    if let Some(accept) = people.pick_accept(&mut draw) {
                        process.decide(nth as u64, Covers::Accept(accept));
                    }
                }
                Happening::Reload => {
                    in_force = changed_routes(&mut draw, &routes, &registries);
                    traits::switch_mode(chance.of(("mode", nth)), &mut in_force);
                    note_closed(&trace, &registries, &in_force);
                    process.reload(&in_force);
                }
            }
        }
        tokio::time::sleep_until(trace.moment(end)).await;
        registries
            .iter()
            .for_each(|registry| registry.set(|settings| settings.busy_every = None));
        if decisions + rollbacks > 0 && guards.percent(70) {
            process.release_all().await;
        }
        trace.note(Event::Calm);
        // A look that panics leaves its upload sessions behind, as a kill does.
        let steady: Vec<&Registry> = registries
            .iter()
            .filter(|registry| registry.settings().is_steady() && !has_panics(chance))
            .collect();
        let number = process.number();
        let is_idle = || {
            let sessions = steady.iter().map(|registry| registry.open_sessions(number));
            sessions.sum::<usize>() == 0 && oracle::is_settled(&trace.entries())
        };
        let mut waited = SHORT_CALM;
        tokio::time::sleep_until(trace.moment(end + waited)).await;
        while waited < CALM && !is_idle() {
            waited *= 2;
            tokio::time::sleep_until(trace.moment(end + waited)).await;
        }
        // A drain keeps sessions that a later process goes on with; here nothing was under way for
        // long.
        let left: Vec<(&Registry, usize)> = steady
            .iter()
            .map(|registry| (*registry, registry.open_sessions(number)))
            .collect();
        // What comes again and again shows in a long time without events.
        if chance.of("afterwards").percent(10) {
            let before = trace.requests();
            tokio::time::sleep(AFTERWARDS).await;
            let requests = trace.requests() - before;
            let explained = explained_requests(&nature, &registries);
            if requests > explained {
                trace.note(Event::Restless {
                    requests,
                    explained,
                });
            }
        }
        let (engine, number) = (process.engine(), process.number());
        process.stop().await;
        if !engine.is_idle() {
            trace.note(Event::Held { process: number });
        }
        for (registry, sessions) in left {
            if sessions > 0 {
                trace.note(Event::Left {
                    registry: registry.name().clone(),
                    sessions,
                });
            }
        }
    }
}

/// How many requests the polls of a calm time may send: for each tag that there is a dozen, and for
/// each repository another.
fn explained_requests(nature: &Nature, registries: &[Registry]) -> u64 {
    let repositories = registries.iter().flat_map(|registry| {
        registry
            .repositories()
            .into_iter()
            .map(move |name| (registry, name))
    });
    let each: usize = repositories
        .map(|(registry, name)| 1 + registry.tags(&name).len())
        .sum();
    let polls = AFTERWARDS.as_secs() / nature.poll.as_secs().max(1) + 2;
    polls * 12 * (each as u64 + 4)
}

/// Kinds of registries whose lists show at once what is there.
const CURRENT: [Kind; 4] = [
    Kind::Distribution2,
    Kind::Distribution3,
    Kind::Zot,
    Kind::Olareg,
];

fn drawn_registry(draw: &mut Draw, is_production: bool, within: Duration) -> Settings {
    let kinds = [
        Kind::Distribution2,
        Kind::Distribution3,
        Kind::Zot,
        Kind::Ecr,
        Kind::Generic,
        Kind::Ghcr,
        Kind::Harbor,
        Kind::Quay,
        Kind::Gar,
    ];
    let kind = draw.pick(&kinds);
    let mut settings = Settings::of(kind);
    let slow = draw.pick(&[10, 40, 40, 300, 3000]);
    settings.latency = (1, slow);
    if !CURRENT.contains(&kind) && draw.percent(60) {
        settings.lag = draw.millis(1_000, 60_000);
        settings.hides_list = is_production && draw.percent(10);
    }
    if draw.percent(20) {
        settings.page = 2;
    }
    settings.claims_digests = draw.percent(90);
    settings.rate = draw.pick(&[None, None, Some(1_000_000), Some(50_000)]);
    settings.agrees = !is_production && draw.percent(20);
    if draw.percent(30) {
        settings.mounts_refused = draw.pick(&[30, 100]);
    }
    if settings.referrers == Referrers::Kept && draw.percent(30) {
        settings.referrers = draw.pick(&[Referrers::None, Referrers::MissingSubject]);
    }
    if is_production {
        settings.verifies_blobs = draw.percent(90);
        settings.checks_content = draw.percent(90);
        settings.refuses_artifacts = draw.percent(8);
        if draw.percent(10) {
            settings.denied.insert("v1".into());
        }
        settings.quota = draw.percent(10).then(|| draw.pick(&[1_000, 20_000]));
    }
    if draw.percent(10) {
        let operations = [
            Operation::BeginUpload,
            Operation::PutManifest,
            Operation::Resolve,
            Operation::Manifest,
        ];
        settings.busy_every = Some((draw.pick(&operations), draw.between(2, 9)));
    }
    if draw.percent(60) {
        settings.trouble = Trouble {
            percent: draw.pick(&[2, 10, 30]),
            until: within,
            kinds: drawn_trouble(draw),
        };
    }
    if draw.percent(8) {
        let sick = draw.pick(&[
            Sick::Busy(30),
            Sick::Busy(700),
            Sick::Drip(15_000),
            Sick::Down,
        ]);
        settings.sick = Some((sick, within));
    }
    settings
}

/// Whether gates, decisions and orders of people stand between tags and their names in this world.
/// Drawn for itself: the other worlds stay as they were.
fn is_guarded(chance: Chance) -> bool {
    chance.of("guards").percent(35)
}

/// Some routes have gates: those of one route are the same for all its destinations.
fn guard(mut draw: Draw, routes: &mut [Rules]) {
    let mut drawn: BTreeMap<Arc<str>, GateRules> = BTreeMap::new();
    for rules in routes {
        let gates = drawn
            .entry(rules.route.clone())
            .or_insert_with(|| match draw.percent(60) {
                true => GateRules::draw(&mut draw),
                false => GateRules::default(),
            });
        rules.gates = gates.clone();
    }
}

/// Whether bodies panic in this world. Drawn for itself: the other worlds stay as they were.
fn has_panics(chance: Chance) -> bool {
    chance.of("panics").percent(8)
}

/// Bodies that are read from a registry in trouble may panic as well.
fn panics_at_times(registry: &Registry) {
    registry.set(|settings| {
        settings.trouble.kinds.push(TroubleKind::Panic);
    });
}

fn drawn_trouble(draw: &mut Draw) -> Vec<TroubleKind> {
    let all = [
        TroubleKind::Busy,
        TroubleKind::BusyFor(1),
        TroubleKind::BusyFor(12),
        TroubleKind::Broken,
        TroubleKind::Reset,
        TroubleKind::Lost,
        TroubleKind::Lost,
        TroubleKind::Slow,
        TroubleKind::Cut,
        TroubleKind::Corrupt,
        TroubleKind::Drip(5_000),
        TroubleKind::Vanish,
        TroubleKind::Spoil,
    ];
    (0..draw.between(1, 5)).map(|_| draw.pick(&all)).collect()
}

/// Says which tags may not be written where the routes lead.
fn note_closed(trace: &Trace, registries: &[Registry], routes: &[Rules]) {
    for registry in registries {
        let Settings {
            denied, refused, ..
        } = registry.settings();
        let here = routes
            .iter()
            .filter(|rules| rules.destination.0 == *registry.name());
        let denied = here.flat_map(|rules| {
            let repository = rules.destination.1.to_string();
            denied
                .iter()
                .map(move |tag| (repository.clone(), tag.clone()))
        });
        for (repository, tag) in denied.chain(refused) {
            trace.note(Event::Closed {
                place: Place {
                    registry: registry.name().clone(),
                    repository: repository.into(),
                    tag: tag.into(),
                },
            });
        }
    }
}

/// The routes of a world as another config writes them: tags are left out or move, a route leads
/// elsewhere or is gone.
fn changed_routes(draw: &mut Draw, routes: &[Rules], registries: &[Registry]) -> Vec<Rules> {
    let changed = draw.pick(routes).route;
    let names = registries.iter().map(|registry| registry.name().clone());
    let production: Vec<Arc<str>> = names
        .filter(|name| name.starts_with("production"))
        .collect();
    let change = draw.below(6);
    let elsewhere = draw.pick(&production);
    let mut routes = routes.to_vec();
    for rules in routes.iter_mut().filter(|rules| rules.route == changed) {
        match change {
            0 => rules.exclude_alone("v*"),
            1 => rules.exclude_alone("latest"),
            2 => rules.moving = vec!["latest".into(), "v1*".into()],
            3 => rules.drift = Drift::Restore,
            4 => rules.destination.0 = elsewhere.clone(),
            _ => {}
        }
    }
    // Two destinations of one route may have become one.
    let mut places = std::collections::BTreeSet::new();
    routes.retain(|rules| places.insert(rules.destination.clone()));
    if change == 5 && routes.iter().any(|rules| rules.route != changed) {
        routes.retain(|rules| rules.route != changed);
    }
    routes
}

fn drawn_routes(draw: &mut Draw, registries: &[Registry]) -> Vec<Rules> {
    let names = registries.iter().map(|registry| registry.name().clone());
    let (staging, production): (Vec<Arc<str>>, Vec<Arc<str>>) =
        names.partition(|name| name.starts_with("staging"));
    let count = draw.between(1, 3);
    let route = |number: u64| {
        let name: Arc<str> = format!("app-{number}").into();
        let moving: Vec<Arc<str>> = if draw.percent(70) {
            vec!["latest".into()]
        } else {
            vec!["latest".into(), "edge".into()]
        };
        Rules {
            route: name.clone(),
            source: (draw.pick(&staging), name.clone()),
            destination: (draw.pick(&production), format!("prod-{name}").into()),
            include: if draw.percent(70) {
                vec!["*".into()]
            } else {
                vec!["latest".into(), "v*".into()]
            },
            exclude: if draw.percent(80) {
                Vec::new()
            } else {
                vec!["v2*".into()]
            },
            moving,
            existing: draw.pick(&[Existing::Keep, Existing::Keep, Existing::Adopt]),
            drift: draw.pick(&[Drift::Keep, Drift::Keep, Drift::Restore]),
            wild: false,
            gates: GateRules::default(),
            observes: false,
            forward_only: Vec::new(),
            set: None,
            backs_up: false,
        }
    };
    (1..=count).map(route).collect()
}

/// Some routes have two destinations, and some are written with wildcards. Drawn for itself: the
/// other worlds stay as they were.
fn varied_routes(mut draw: Draw, routes: Vec<Rules>, registries: &[Registry]) -> Vec<Rules> {
    let names = registries.iter().map(|registry| registry.name().clone());
    let production: Vec<Arc<str>> = names
        .filter(|name| name.starts_with("production"))
        .collect();
    let mut varied = Vec::new();
    for mut rules in routes {
        if draw.percent(20) {
            rules.wild = true;
            rules.source.1 = format!("{}/web", rules.source.1).into();
            rules.destination.1 = format!("{}/web", rules.destination.1).into();
        }
        let second = draw.percent(20).then(|| Rules {
            destination: (
                draw.pick(&production),
                format!("second-{}", rules.source.1).into(),
            ),
            ..rules.clone()
        });
        varied.push(rules);
        varied.extend(second);
    }
    varied
}

/// What the tags of all sources and destinations name.
fn named(registries: &[Registry], routes: &[Rules]) -> Named {
    let sides = routes
        .iter()
        .flat_map(|rules| [&rules.source, &rules.destination]);
    let places: Vec<(&Registry, RepositoryName)> = sides
        .filter_map(|(registry, repository)| {
            let registry = registries.iter().find(|known| known.name() == registry)?;
            Some((registry, repository.parse().ok()?))
        })
        .collect();
    let places = places.iter().map(|(registry, name)| (*registry, name));
    Named::of(places)
}

/// The deeds that may happen in a world; some often, and not all in each.
fn drawn_deeds(draw: &mut Draw) -> Vec<Deed> {
    let mut deeds = vec![Deed::PushVersion, Deed::PushVersion, Deed::PushMoving];
    for deed in Deed::ALL {
        for _ in 0..draw.pick(&[0, 0, 1, 3]) {
            deeds.push(deed);
        }
    }
    deeds
}
