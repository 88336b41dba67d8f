//! The report as JUnit XML, which build servers show as test results: one case for each job.

use std::fmt::Write as _;

use crate::job::{Outcome, Report, Settled};

/// The report as an XML document.
pub(super) fn document(report: &Report) -> String {
    let cases: Vec<Case> = report.jobs.iter().map(Case::of).collect();
    let trouble = report.trouble.iter().map(|text| Case::trouble(text));
    let cases: Vec<Case> = cases.into_iter().chain(trouble).collect();
    let count = |wanted: &str| cases.iter().filter(|case| case.tag() == wanted).count();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuite name=\"blobferry\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\" timestamp=\"{}\">",
        cases.len(),
        count("failure"),
        count("error"),
        count("skipped"),
        report.duration_seconds,
        report.started,
    );
    for case in &cases {
        case.write(&mut text);
    }
    text.push_str("</testsuite>\n");
    text
}

/// What a build server shows of a job.
enum Verdict {
    Passed,
    Skipped,
    /// A rule or a person stands against it.
    Failure,
    /// It could not be done.
    Error,
}

struct Case<'a> {
    class: &'a str,
    name: &'a str,
    seconds: f64,
    verdict: Verdict,
    kind: &'a str,
    text: String,
}

impl<'a> Case<'a> {
    fn of(job: &'a Settled) -> Case<'a> {
        let error = job.error.as_ref().map(|error| error.text.clone());
        let reasons = job.reasons.iter().cloned();
        Case {
            class: &job.source,
            name: &job.destination,
            seconds: job.duration_seconds,
            verdict: verdict(job.result),
            kind: job.result.name(),
            text: reasons.chain(error).collect::<Vec<_>>().join("\n"),
        }
    }

    /// What could not be looked at has no job.
    fn trouble(text: &'a str) -> Case<'a> {
        Case {
            class: "blobferry",
            name: "look",
            seconds: 0.0,
            verdict: Verdict::Error,
            kind: "trouble",
            text: text.into(),
        }
    }

    fn tag(&self) -> &'static str {
        match self.verdict {
            Verdict::Passed => "system-out",
            Verdict::Skipped => "skipped",
            Verdict::Failure => "failure",
            Verdict::Error => "error",
        }
    }

    fn write(&self, text: &mut String) {
        let _ = write!(
            text,
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">",
            escaped(self.class),
            escaped(self.name),
            self.seconds
        );
        let tag = self.tag();
        let kind = self.kind;
        let content = escaped(&self.text);
        let _ = match self.verdict {
            Verdict::Passed if content.is_empty() => write!(text, "<{tag}>{kind}</{tag}>"),
            Verdict::Passed => write!(text, "<{tag}>{kind}: {content}</{tag}>"),
            Verdict::Skipped => write!(text, "<{tag} message=\"{kind}: {content}\"/>"),
            Verdict::Failure | Verdict::Error => {
                write!(
                    text,
                    "<{tag} type=\"{kind}\" message=\"{kind}\">{content}</{tag}>"
                )
            }
        };
        text.push_str("</testcase>\n");
    }
}

fn verdict(result: Outcome) -> Verdict {
    match result {
        Outcome::Promoted | Outcome::UpToDate | Outcome::Planned => Verdict::Passed,
        Outcome::Existing => Verdict::Skipped,
        Outcome::Conflict
        | Outcome::Drift
        | Outcome::Refused
        | Outcome::Waiting
        | Outcome::Held => Verdict::Failure,
        Outcome::Gone | Outcome::Interrupted | Outcome::Failed => Verdict::Error,
    }
}

/// Text for an element or an attribute: without the characters that XML cannot have.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => {}
            other if other.is_control() => {}
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_xml_cannot_have_are_escaped_or_dropped() {
        assert_eq!(
            escaped("a<b>&\"c\"\u{1b}[1m\n"),
            "a&lt;b&gt;&amp;&quot;c&quot;[1m\n"
        );
    }
}
