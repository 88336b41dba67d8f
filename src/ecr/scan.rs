//! What ECR's scanners say of an image (DescribeImageScanFindings), basic and enhanced.
//!
//! Basic scans end as COMPLETE; enhanced scans, by Inspector, go on and stay ACTIVE.
//! <https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImageScanFindings.html>

use aws_sdk_ecr::operation::describe_image_scan_findings::DescribeImageScanFindingsOutput;
use aws_sdk_ecr::types::{
    EnhancedImageScanFinding, ImageIdentifier, ImageScanFinding, ImageScanFindings, ScanStatus,
};
use jiff::Timestamp;

use super::control::{Control, PAGE, next_cursor, timestamp};
use crate::endpoint::{Cursor, Finding, FindingsPage, ScanAnswer, Severity, Tally};
use crate::fault::{Fault, clip};
use crate::oci::{Digest, RepositoryName};

/// Longest text of a status that is kept, in characters.
const LONGEST: usize = 200;

impl Control {
    /// One page of the findings of an image.
    pub(super) async fn scan_findings(
        &self,
        repository: &RepositoryName,
        image: &Digest,
        cursor: Option<&str>,
        tally: Option<&Tally>,
    ) -> Result<ScanAnswer, Fault> {
        const ACTION: &str = "DescribeImageScanFindings";
        let asked = image.to_string();
        let image = ImageIdentifier::builder().image_digest(&asked).build();
        let answer = self
            .call(ACTION, repository.as_str(), tally, |client| {
                let request = client
                    .describe_image_scan_findings()
                    .repository_name(repository.as_str())
                    .set_registry_id(self.account());
                request
                    .image_id(image)
                    .max_results(PAGE)
                    .set_next_token(cursor.map(str::to_owned))
                    .send()
            })
            .await;
        match answer {
            Ok(answer) if self.is_about(&answer, repository, &asked) => Ok(read(&answer)),
            Ok(_) => Ok(ScanAnswer::Pending(
                "the answer is about another image".into(),
            )),
            Err(refusal) => match &*refusal.code {
                "ScanNotFoundException" => Ok(ScanAnswer::Pending("no scan".into())),
                "ImageNotFoundException" => Ok(ScanAnswer::Pending("no such image".into())),
                _ => Err(refusal.fault),
            },
        }
    }

    /// Whether findings are those of the image in its repository and account, as far as they say.
    fn is_about(
        &self,
        answer: &DescribeImageScanFindingsOutput,
        repository: &RepositoryName,
        image: &str,
    ) -> bool {
        let said = [
            answer.image_id().and_then(|id| id.image_digest()),
            answer.repository_name(),
            answer.registry_id(),
        ];
        let account = self.account();
        let account = account.as_deref().or(said[2]).unwrap_or_default();
        let asked = [image, repository.as_str(), account];
        let mut pairs = said.into_iter().zip(asked);
        pairs.all(|(said, asked)| said.is_none_or(|said| said == asked))
    }
}

fn read(answer: &DescribeImageScanFindingsOutput) -> ScanAnswer {
    let scan = answer.image_scan_status();
    let Some(status) = scan.and_then(|scan| scan.status()) else {
        return ScanAnswer::Pending("no status".into());
    };
    let word = clip(status.as_str(), LONGEST);
    match status {
        ScanStatus::Active | ScanStatus::Complete => match answer.image_scan_findings() {
            Some(findings) => {
                let next = next_cursor(answer.next_token.clone());
                ScanAnswer::Findings(page(findings, next))
            }
            None => ScanAnswer::Pending(format!("{word} without findings")),
        },
        ScanStatus::Failed
        | ScanStatus::FindingsUnavailable
        | ScanStatus::ImageArchived
        | ScanStatus::LimitExceeded
        | ScanStatus::ScanEligibilityExpired
        | ScanStatus::UnsupportedImage => {
            let description = scan.and_then(|scan| scan.description());
            let description = description.filter(|text| !text.is_empty());
            let description = description.map(|text| format!(": {}", clip(text, LONGEST)));
            ScanAnswer::Ended(word + &description.unwrap_or_default())
        }
        // In progress, pending, and what this version does not know.
        _ => ScanAnswer::Pending(word),
    }
}

fn page(found: &ImageScanFindings, next: Option<Cursor>) -> FindingsPage {
    let scanned = found.image_scan_completed_at().and_then(timestamp);
    let basic = found.findings().iter().map(|one| basic(one, scanned));
    let enhanced = found.enhanced_findings().iter();
    let (open, over): (Vec<_>, Vec<_>) = enhanced.partition(|one| is_open(one));
    let inspected = open.into_iter().map(inspected);
    let read: Result<Vec<Finding>, String> = basic.chain(inspected).collect();
    let over = over
        .into_iter()
        .filter_map(|one| Severity::of(one.severity()?));
    let counts = found.finding_severity_counts();
    let counts = counts.map(|counts| {
        let counts = counts.iter().filter_map(|(severity, count)| {
            let count = u64::try_from(*count).ok()?;
            Some((Severity::of(severity.as_str())?, count))
        });
        counts.collect()
    });
    FindingsPage {
        scanned,
        counts,
        unreadable: read.as_ref().err().cloned(),
        findings: read.unwrap_or_default(),
        over: over.collect(),
        next,
    }
}

/// A basic finding says nothing of its own age: it counts from the end of the scan.
fn basic(finding: &ImageScanFinding, scanned: Option<Timestamp>) -> Result<Finding, String> {
    let word = finding.severity().map(|severity| severity.as_str());
    Finding::read(finding.name(), word, scanned, Severity::of)
}

fn inspected(finding: &EnhancedImageScanFinding) -> Result<Finding, String> {
    let vulnerability = finding.package_vulnerability_details();
    let id = vulnerability
        .and_then(|details| details.vulnerability_id())
        .or(finding.title())
        .or(finding.finding_arn());
    let since = finding.first_observed_at().and_then(timestamp);
    Finding::read(id, finding.severity(), since, Severity::of)
}

/// Inspector keeps findings that were mended or that its own rules suppress.
fn is_open(finding: &EnhancedImageScanFinding) -> bool {
    !matches!(finding.status(), Some("CLOSED" | "SUPPRESSED"))
}
