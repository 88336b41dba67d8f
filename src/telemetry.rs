//! Logs: one line for each event, on stderr, bounded in length, as text for people or as JSON for
//! machines.
//!
//! A line's message is constant; the facts are fields, those of the spans around it included.
//! Whatever a peer said is escaped, so an event never becomes two lines. Under systemd the level
//! goes in front as `<6>` and the journal keeps the time. Dependencies speak only from warn on;
//! below debug they never do, since there they print headers.
//!
//! Everything that is written to stderr goes through a bounded queue to a thread of its own: a
//! stderr that is not read stops nothing. Lines that find no room are dropped and counted.
//!
//! [`Changes`] is for trouble that lasts: it is logged when it changes, not at each occurrence.

mod changes;
mod stderr;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use prometheus::IntCounter;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use changes::Changes;

use self::stderr::Stderr;
use crate::clock;
use crate::fault::clip;

/// Characters of one field's value at most.
const MOST_VALUE: usize = 2000;
/// Characters of one line's fields at most; what is beyond is left out, and the line says so.
const MOST_LINE: usize = 8000;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-21T19:45:02.120Z  INFO promoted route=demo-app`
    #[default]
    Text,
    /// One flat object: `timestamp`, `level`, `target`, `message`, and the fields.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How a line looks.
    pub format: Format,
    /// 0 is info; each `-q` takes one away, each `-v` adds one.
    pub verbosity: i8,
    /// Directives as in `RUST_LOG`; they replace what `verbosity` says.
    pub filter: Option<String>,
    /// Colours, for text on a terminal.
    pub color: bool,
    /// stderr is connected to the journal: levels in front, and no time in text.
    pub journald: bool,
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not understood.
    #[error(
        "`{filter}` is not a log filter; an example of one is `info,blobferry::transfer=debug`"
    )]
    Filter {
        /// As it was written.
        filter: String,
        /// Why.
        source: Box<tracing_subscriber::filter::ParseError>,
    },
    /// Logs are set up in this process already.
    #[error("logs are already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Where lines go: whole lines, the newline included.
pub type Sink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Logs to stderr from now on, for the whole process.
///
/// # Errors
/// A filter that is not understood, or a second call.
pub fn start(settings: Settings) -> Result<(), Error> {
    start_with(settings, Box::new(to_stderr))
}

/// Logs to `sink`: for a terminal that has other things on it, such as progress bars. Panics are
/// logged, too, past the sink: it may be what panicked.
///
/// # Errors
/// As [`start`].
pub fn start_with(settings: Settings, sink: Sink) -> Result<(), Error> {
    let of_process = Style::of(&settings);
    subscriber(settings, sink)?.try_init()?;
    let _ = STYLE.set(of_process);
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// How lines look that come from no event.
static STYLE: OnceLock<Style> = OnceLock::new();

static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "Lines that were not logged because stderr was not read.";
    IntCounter::new("blobferry_log_lines_dropped_total", help).expect("the name is a name")
});

/// A descriptor of its own: the lock of the standard library's stderr would be held while a write
/// blocks.
static STDERR: LazyLock<Stderr> = LazyLock::new(|| {
    let note = Box::new(|lines| {
        let fields = Fields {
            message: format!("{lines} log lines were dropped: stderr was not read"),
            ..Fields::default()
        };
        STYLE
            .get()
            .copied()
            .unwrap_or_default()
            .line(Level::WARN, "blobferry", fields)
            .into_bytes()
    });
    match std::io::stderr().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Stderr::start(File::from(descriptor), DROPPED.clone(), note),
        Err(_) => Stderr::start(std::io::sink(), DROPPED.clone(), note),
    }
});

/// Shows how many lines were dropped.
///
/// # Errors
/// When the name is registered already.
pub fn count_dropped(registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(DROPPED.clone()))
}

/// Writes a line to stderr, or counts it as dropped; never waits.
pub fn to_stderr(line: &[u8]) {
    STDERR.line(line);
}

/// Writes a line of the program itself that is no event: the error that ends it, progress without a
/// terminal. It is plain text, or an object where logs are, and no filter leaves it out.
pub fn say(level: Level, text: &str) {
    let format = *FORMAT.get_or_init(Format::default);
    let line = match format {
        Format::Text => format!("{text}\n"),
        Format::Json => {
            json(
                level,
                "blobferry",
                Fields {
                    message: clip_lines(text, MOST_LINE),
                    ..Fields::default()
                },
            ) + "\n"
        }
    };
    to_stderr(line.as_bytes());
}

/// Line breaks stay: in JSON they end no line.
fn clip_lines(text: &str, most: usize) -> String {
    let text: String = text.chars().take(most).collect();
    let lines: Vec<String> = text.split('\n').map(|line| clip(line, most)).collect();
    lines.join("\n")
}

/// How [`say`] writes.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// Sets how [`say`] writes, once for the process and before it writes.
pub fn say_as(format: Format) {
    // There is one command line, so one answer.
    let _ = FORMAT.set(format);
}

/// Draws on the terminal behind stderr, or leaves it out; never waits.
pub fn draw(text: &[u8]) {
    STDERR.drawing(text);
}

/// Waits until stderr has everything, for so long at most.
pub fn flush(at_most: Duration) {
    STDERR.flush(at_most);
}

/// A process that aborts after a panic has this long to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Logs a panic without a subscriber, and without any lock that the code that panicked may hold.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let mut fields = Fields {
        message: "a panic, which is a defect of this program".into(),
        ..Fields::default()
    };
    let thread = std::thread::current();
    let text = panic.payload_as_str().unwrap_or("(no text)");
    fields
        .named
        .push(("error", short(format_args!("{text}")).into()));
    if let Some(location) = panic.location() {
        fields.named.push(("at", location.to_string().into()));
    }
    fields
        .named
        .push(("thread", thread.name().unwrap_or("(no name)").into()));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        fields.named.push((
            "backtrace",
            clip(&backtrace.to_string(), MOST_LINE / 2).into(),
        ));
    }
    let line = STYLE
        .get()
        .copied()
        .unwrap_or_default()
        .line(Level::ERROR, "blobferry", fields);
    STDERR.line(line.as_bytes());
    STDERR.flush(LAST_WORDS);
}

fn subscriber(settings: Settings, sink: Sink) -> Result<impl Subscriber + Send + Sync, Error> {
    let directives = settings
        .filter
        .clone()
        .filter(|filter| !filter.trim().is_empty());
    let directives = directives.unwrap_or_else(|| of_verbosity(settings.verbosity).into());
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|source| Error::Filter {
            filter: clip(&directives, 200),
            source: Box::new(source),
        })?;
    let filter = filter.and(filter_fn(|metadata| {
        is_ours(metadata.target()) || *metadata.level() <= Level::DEBUG
    }));
    Ok(tracing_subscriber::registry().with(
        Lines {
            style: Style::of(&settings),
            sink,
        }
        .with_filter(filter),
    ))
}

fn of_verbosity(verbosity: i8) -> &'static str {
    match verbosity {
        ..=-2 => "error",
        // What the AWS SDK warns of, its caller is told as well, and says once.
        -1 => "warn,aws_config=error",
        0 => "warn,aws_config=error,blobferry=info",
        1 => "warn,aws_config=error,blobferry=debug",
        2 => "info,blobferry=trace",
        3.. => "debug,blobferry=trace",
    }
}

fn is_ours(target: &str) -> bool {
    target == "blobferry" || target.starts_with("blobferry::")
}

/// The layer that writes the lines.
struct Lines {
    style: Style,
    sink: Sink,
}

/// How a line looks.
#[derive(Clone, Copy, Default)]
struct Style {
    format: Format,
    color: bool,
    journald: bool,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.add_outer(outer);
            }
        }
        // Lines of the `log` crate carry their real target as a field.
        let target = fields
            .log_target
            .clone()
            .unwrap_or_else(|| event.metadata().target().into());
        (self.sink)(
            self.style
                .line(*event.metadata().level(), &target, fields)
                .as_bytes(),
        );
    }
}

impl Style {
    fn of(settings: &Settings) -> Style {
        Style {
            format: settings.format,
            color: settings.color,
            journald: settings.journald,
        }
    }

    /// A whole line, the newline included.
    fn line(&self, level: Level, target: &str, fields: Fields) -> String {
        let mut line = if self.journald {
            format!("<{}>", syslog(level))
        } else {
            String::new()
        };
        match self.format {
            Format::Text => self.text(&mut line, level, target, &fields),
            Format::Json => line.push_str(&json(level, target, fields)),
        }
        line.push('\n');
        line
    }

    fn text(&self, line: &mut String, level: Level, target: &str, fields: &Fields) {
        let paint = Paint(self.color);
        if !self.journald {
            let _ = write!(line, "{} ", paint.dim(format_args!("{:.3}", clock::now())));
        }
        let _ = write!(line, "{} ", paint.level(level));
        if !is_ours(target) || level >= Level::DEBUG {
            let _ = write!(line, "{} ", paint.dim(format_args!("{target}:")));
        }
        line.push_str(&clip(&fields.message, MOST_VALUE));
        let mut left = MOST_LINE;
        for (name, value) in &fields.named {
            let value = plain(value);
            let Some(rest) = left.checked_sub(name.len() + value.len()) else {
                line.push_str(" …");
                return;
            };
            left = rest;
            let _ = write!(line, " {}{value}", paint.dim(format_args!("{name}=")));
        }
    }
}

fn json(level: Level, target: &str, fields: Fields) -> String {
    let mut object = Map::new();
    object.insert("timestamp".into(), format!("{:.3}", clock::now()).into());
    object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
    object.insert("target".into(), target.into());
    object.insert("message".into(), fields.message.into());
    let mut left = MOST_LINE;
    for (name, value) in fields.named {
        let size = name.len() + value.as_str().map_or(24, str::len);
        let Some(rest) = left.checked_sub(size) else {
            object.insert("truncated".into(), true.into());
            break;
        };
        left = rest;
        let name = if object.contains_key(name) {
            format!("{name}_")
        } else {
            name.into()
        };
        object.insert(name, value);
    }
    Value::Object(object).to_string()
}

/// A value in text: quoted and escaped unless it is one plain word.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text)
            if !text.is_empty()
                && text.chars().all(|character| {
                    !character.is_whitespace()
                        && !character.is_control()
                        && !"\"=\\".contains(character)
                }) =>
        {
            text.clone()
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// The priorities that the journal reads from a line's start.
fn syslog(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Colours, or none.
struct Paint(bool);

impl Paint {
    fn dim(&self, text: fmt::Arguments<'_>) -> String {
        if self.0 {
            format!("\u{1b}[2m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    }

    fn level(&self, level: Level) -> String {
        let color = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        if self.0 {
            format!("\u{1b}[{color}m{level:>5}\u{1b}[0m")
        } else {
            format!("{level:>5}")
        }
    }
}

/// What an event or a span says: the message, and fields in the order in which they were written.
#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, Value)>,
    log_target: Option<String>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match (name, &value) {
            ("message", _) => {
                self.message = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            }
            ("log.target", Value::String(target)) => self.log_target = Some(target.clone()),
            ("log.module_path" | "log.file" | "log.line", _) => {}
            _ => match self.named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => self.named.push((name, value)),
            },
        }
    }

    /// Adds a span's fields; what is nearer to the event wins.
    fn add_outer(&mut self, outer: &Fields) {
        for (name, value) in &outer.named {
            if !self.named.iter().any(|(known, _)| known == name) {
                self.named.push((name, value.clone()));
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, short(format_args!("{value:?}")).into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, short(format_args!("{value}")).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    /// The whole chain, each thing once.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let level = error.to_string();
            if !text.contains(&level) {
                let _ = write!(text, ": {level}");
            }
            cause = error.source();
        }
        self.set(field, short(format_args!("{text}")).into());
    }
}

/// At most [`MOST_VALUE`] characters of a text; what is beyond is not even formatted.
fn short(text: fmt::Arguments<'_>) -> String {
    let mut short = Short {
        text: String::new(),
        left: MOST_VALUE,
    };
    if short.write_fmt(text).is_err() {
        short.text.push('…');
    }
    short.text
}

/// A text that has room for `left` more characters.
struct Short {
    text: String,
    left: usize,
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.text.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::fault::Fault;

    fn logged(settings: Settings, act: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let lines = lines.clone();
            move |line: &[u8]| {
                lines
                    .lock()
                    .unwrap()
                    .push(String::from_utf8(line.to_vec()).unwrap())
            }
        };
        tracing::subscriber::with_default(subscriber(settings, Box::new(sink)).unwrap(), act);
        lines.lock().unwrap().clone()
    }

    fn journal() -> Settings {
        Settings {
            journald: true,
            ..Settings::default()
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_a_peer_said() {
        let lines = logged(journal(), || {
            let span =
                tracing::info_span!("job", route = "demo", tag = tracing::field::Empty).entered();
            span.record("tag", "v1");
            tracing::info!(
                said = "no\n<3>ERROR all is lost\u{1b}[2J",
                count = 3,
                ok = true,
                "push refused"
            );
        });
        assert_eq!(
            lines,
            [
                "<6> INFO push refused said=\"no\\n<3>ERROR all is lost\\u{1b}[2J\" count=3 ok=true route=demo tag=v1\n"
            ]
        );
    }

    #[test]
    fn json_is_one_flat_object_and_no_field_hides_another() {
        let lines = logged(
            Settings {
                format: Format::Json,
                ..Settings::default()
            },
            || {
                tracing::warn!(
                    target: "blobferry::transfer",
                    level = 7,
                    bytes = 9_437_184_u64,
                    text = "a \"b\"\n",
                    "copied"
                );
            },
        );
        let mut object: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        assert!(
            object
                .remove("timestamp")
                .unwrap()
                .as_str()
                .unwrap()
                .ends_with('Z')
        );
        let expected = serde_json::json!({"level": "warn", "target": "blobferry::transfer", "message": "copied",
            "level_": 7, "bytes": 9_437_184_u64, "text": "a \"b\"\n"});
        assert_eq!(Value::Object(object), expected);
    }

    #[test]
    fn lines_are_bounded_in_both_formats() {
        let long = "x".repeat(100_000);
        for format in [Format::Text, Format::Json] {
            let lines = logged(
                Settings {
                    format,
                    ..Settings::default()
                },
                || {
                    tracing::info!(
                        a = long,
                        b = long,
                        c = long,
                        d = long,
                        e = long,
                        f = long,
                        "{long}"
                    );
                },
            );
            assert!(lines[0].len() < 12_000, "{format:?}: {}", lines[0].len());
            assert!(format == Format::Text || serde_json::from_str::<Value>(&lines[0]).is_ok());
        }
    }

    #[test]
    fn levels_follow_the_flags_and_dependencies_stay_quiet() {
        let speak = || {
            tracing::error!(target: "hyper::x", "E");
            tracing::info!(target: "hyper::x", "I");
            tracing::trace!(target: "hyper::x", "T");
            tracing::warn!(target: "blobferry::x", "w");
            tracing::info!(target: "blobferry::x", "i");
            tracing::debug!(target: "blobferry::x", "d");
            tracing::trace!(target: "blobferry::x", "t");
        };
        let cases = [
            (-2, None, "E"),
            (-1, None, "Ew"),
            (0, None, "Ewi"),
            (1, None, "Ewid"),
            (2, None, "EIwidt"),
        ];
        for (verbosity, filter, expected) in cases
            .into_iter()
            .chain([(0, Some("trace"), "EIwidt"), (1, Some(" "), "Ewid")])
        {
            let settings = Settings {
                verbosity,
                filter: filter.map(str::to_owned),
                ..Settings::default()
            };
            let messages: String = logged(settings, speak)
                .iter()
                .map(|line| line.trim_end().chars().last().unwrap())
                .collect();
            assert_eq!(messages, expected, "{verbosity} {filter:?}");
        }
    }

    #[test]
    fn a_broken_filter_is_an_error_that_names_it() {
        let settings = Settings {
            filter: Some("blobferry=loud".into()),
            ..Settings::default()
        };
        let error = subscriber(settings, Box::new(|_| {}))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("`blobferry=loud` is not a log filter"),
            "{error}"
        );
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        let lines = logged(journal(), || {
            let fault = Fault::rejected("cannot push").because(std::io::Error::other("disk full"));
            tracing::error!(error = &fault as &dyn std::error::Error, "failed");
        });
        assert_eq!(
            lines,
            ["<3>ERROR failed error=\"cannot push: disk full\"\n"]
        );
    }
}
