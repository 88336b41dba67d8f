//! `demo`: see it work at once.

use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::lines::Lines;
use super::output::{self, Style};
use super::pass::Signals;
use super::{Failure, environment};
use crate::demo::{self, DemoEvent};

/// See it work at once: two registries on loopback ports, a sample image, the daemon
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry demo                          until Ctrl-C
  blobferry demo --for 30s                a short look

Two registries run inside this process and hold their content in memory. A new
image goes to staging every few seconds; the daemon finds it and brings it to
production. At the end production is compared with staging, every byte of it
hashed: the exit code is 1 when anything differs. Nothing is left behind.")]
pub(super) struct Demo {
    /// End after this time, such as 30s or 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    length: Option<Duration>,
}

impl Demo {
    pub(super) async fn run(&self, lines: &mut Lines) -> Result<u8, Failure> {
        let style = Style::of(&std::io::stdout());
        let mut signals = Signals::listen()?;
        let stop = CancellationToken::new();
        let demo = demo::run(self.length, &environment, stop.clone(), |event| {
            lines.line(told(style, &event))
        });
        let mut demo = std::pin::pin!(demo);
        let summary = loop {
            tokio::select! {
                biased;
                summary = &mut demo => break summary,
                () = signals.next() => match stop.is_cancelled() {
                    true => return Err(Failure::interrupted("aborted")),
                    false => stop.cancel(),
                },
            }
        };
        match summary {
            Ok(summary) => Ok(u8::from(!summary.is_right())),
            Err(error) => Err(Failure::new(1, error)),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text
        .trim()
        .parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok());
    parsed
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a duration such as 30s, 5m or 1h 30m".into())
}

fn told(style: Style, event: &DemoEvent) -> String {
    match event {
        DemoEvent::Ready(place) => welcome(place),
        DemoEvent::Pushed { tag, digest, bytes } => {
            format!(
                "pushed      staging/{tag}  {}  ({})",
                output::short(digest),
                output::bytes(*bytes as u64)
            )
        }
        DemoEvent::Settled { job, lag } => {
            let lag = lag.map(|lag| {
                format!(
                    "\n            in production {} after the push",
                    output::seconds(lag.as_secs_f64())
                )
            });
            output::settled(style, "", job) + &lag.unwrap_or_default()
        }
        DemoEvent::Stopping => "\nstopping: waiting for what was pushed to arrive".into(),
        DemoEvent::Ended(summary) => farewell(style, summary),
    }
}

fn welcome(place: &demo::Place) -> String {
    let demo::Place {
        staging,
        production,
        daemon,
        config,
    } = place;
    let config = config.display();
    let staging_repository = demo::STAGING;
    let production_repository = demo::PRODUCTION;
    format!(
        "staging     http://{staging}/v2/{staging_repository}\n\
         production  http://{production}/v2/{production_repository}\n\
         daemon      http://{daemon}  (looks at staging every 2 s)\n\
         \n\
         From another terminal:\n  \
         curl -s http://{daemon}/metrics | grep ^blobferry_\n  \
         curl -s http://{daemon}/v1/status\n  \
         curl -s -X POST http://{daemon}/v1/sync                    # look now\n  \
         curl -s http://{production}/v2/{production_repository}/tags/list\n  \
         blobferry status -c {config}\n  \
         skopeo inspect --tls-verify=false docker://{production}/{production_repository}:latest\n  \
         crane manifest --insecure {production}/{production_repository}:latest\n\
         \n\
         Ctrl-C ends it.\n"
    )
}

fn farewell(style: Style, summary: &demo::Summary) -> String {
    let pushed = output::plural(summary.pushed, "image");
    let mut text = format!(
        "\n{pushed} pushed, {} promoted; {} sent, {} spared",
        output::plural(summary.promoted, "tag"),
        output::bytes(summary.bytes_sent),
        output::bytes(summary.bytes_spared)
    );
    if summary.on_their_way > 0 {
        text.push_str(&format!(
            "\n{} still on the way",
            output::plural(summary.on_their_way, "tag")
        ));
    }
    for wrong in &summary.wrong {
        text.push_str(&format!("\n{}", style.escape(31, wrong)));
    }
    if summary.is_right() {
        let right = format!(
            "{} equal on both sides, {} hashed again",
            output::plural(summary.equal, "tag"),
            summary.hashed
        );
        text.push_str(&format!("\n{}", style.escape(32, &right)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_welcome_says_where_to_look_and_the_farewell_what_is_wrong() {
        let place = demo::Place {
            staging: "127.0.0.1:1".into(),
            production: "127.0.0.1:2".into(),
            daemon: "127.0.0.1:3".into(),
            config: "/scratch/blobferry.yaml".into(),
        };
        let text = welcome(&place);
        for expected in [
            "curl -s -X POST http://127.0.0.1:3/v1/sync",
            "docker://127.0.0.1:2/prod-demo-app:latest",
            "-c /scratch/blobferry.yaml",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        let mut summary = demo::Summary {
            pushed: 1,
            promoted: 2,
            equal: 2,
            hashed: 11,
            ..demo::Summary::default()
        };
        assert!(
            farewell(Style::default(), &summary)
                .ends_with("2 tags equal on both sides, 11 hashed again")
        );
        summary.wrong.push("v1 differs".into());
        assert!(farewell(Style::default(), &summary).ends_with("\nv1 differs"));
    }
}
