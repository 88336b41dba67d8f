//! Amazon SQS: one queue, in our words.
//!
//! Calls are not retried here: the caller does that. An error names the action, the region and the
//! way out.

mod address;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::config::StalledStreamProtectionConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, Message as Received, MessageSystemAttributeName,
    QueueAttributeName,
};
use jiff::Timestamp;
use tokio::sync::OnceCell;

pub use address::{Address, NoQueue};

use crate::aws::{Access, CALL, Identity, Refusal, refusal};
use crate::fault::{Class, Fault, clip};

/// Messages that one call takes or changes.
pub const BATCH: usize = 10;

/// The actions that a consumer needs on its queue.
pub const ACTIONS: [&str; 4] = [
    "ChangeMessageVisibility",
    "DeleteMessage",
    "GetQueueAttributes",
    "ReceiveMessage",
];

/// Where a queue is, and with which credentials it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The URL.
    pub address: Address,
    /// The region; default: the one in the URL.
    pub region: Option<String>,
    /// Another endpoint than the URL's.
    pub endpoint: Option<String>,
    /// The credentials.
    pub identity: Identity,
}

impl Settings {
    /// The region, from the settings or the URL.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref().or(self.address.region())
    }
}

/// A client of one queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    settings: Arc<Settings>,
    client: Arc<OnceCell<aws_sdk_sqs::Client>>,
}

/// Names a message that was received, until its visibility ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt(pub String);

/// A message that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, for the log.
    pub id: String,
    /// Names it in later calls.
    pub receipt: Receipt,
    /// The body.
    pub body: String,
    /// How often it was received, this time included.
    pub receives: u32,
    /// When it was sent.
    pub sent: Option<Timestamp>,
}

/// How full a queue is, as far as SQS knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that can be received.
    pub visible: u64,
    /// Messages that some consumer has received and not deleted.
    pub in_flight: u64,
    /// After how many receives a message goes to the dead-letter queue, if there is one.
    pub max_receives: Option<u32>,
}

impl Queue {
    /// A client. Nothing is asked before the first call.
    pub fn new(settings: Settings) -> Queue {
        Queue {
            settings: Arc::new(settings),
            client: Arc::default(),
        }
    }

    /// Receives at most `most` messages (at most [`BATCH`]), and waits up to `wait` for the first
    /// one. They are invisible to other consumers for `visibility`.
    ///
    /// # Errors
    /// What keeps AWS from answering.
    pub async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, Fault> {
        let timeouts = aws_config::timeout::TimeoutConfig::builder()
            .operation_timeout(wait + CALL)
            .build();
        // Nothing moves while the queue is empty: that is no stall.
        let patient = aws_sdk_sqs::Config::builder()
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let answer = self
            .client()
            .await?
            .receive_message()
            .queue_url(self.settings.address.to_string())
            .max_number_of_messages(most.clamp(1, BATCH) as i32)
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(visibility))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .customize()
            .config_override(patient)
            .send()
            .await;
        let answer = answer.map_err(|error| self.fault("ReceiveMessage", &error))?;
        let messages = answer.messages.unwrap_or_default();
        Ok(messages.into_iter().filter_map(message).collect())
    }

    /// Deletes at most [`BATCH`] messages. Returns for each receipt whether it was deleted.
    ///
    /// # Errors
    /// What keeps AWS from answering.
    pub async fn delete(&self, receipts: &[Receipt]) -> Result<Vec<Result<(), Fault>>, Fault> {
        let entries = receipts.iter().enumerate().map(|(number, receipt)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(&receipt.0)
                .build()
                .expect("id and receipt are set")
        });
        let answer = self
            .client()
            .await?
            .delete_message_batch()
            .queue_url(self.settings.address.to_string())
            .set_entries(Some(entries.collect()))
            .send()
            .await
            .map_err(|error| self.fault("DeleteMessage", &error))?;
        Ok(self.each("DeleteMessage", receipts.len(), &answer.failed))
    }

    /// Sets for how long, from now on, at most [`BATCH`] messages stay invisible. Returns for each
    /// receipt whether that was done.
    ///
    /// # Errors
    /// What keeps AWS from answering.
    pub async fn set_visibility(
        &self,
        changes: &[(Receipt, Duration)],
    ) -> Result<Vec<Result<(), Fault>>, Fault> {
        let entries = changes.iter().enumerate().map(|(number, (receipt, time))| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(number.to_string())
                .receipt_handle(&receipt.0)
                .visibility_timeout(seconds(*time))
                .build()
                .expect("id and receipt are set")
        });
        let answer = self
            .client()
            .await?
            .change_message_visibility_batch()
            .queue_url(self.settings.address.to_string())
            .set_entries(Some(entries.collect()))
            .send()
            .await
            .map_err(|error| self.fault("ChangeMessageVisibility", &error))?;
        Ok(self.each("ChangeMessageVisibility", changes.len(), &answer.failed))
    }

    /// How full it is.
    ///
    /// # Errors
    /// What keeps AWS from answering.
    pub async fn depth(&self) -> Result<Depth, Fault> {
        let answer = self
            .client()
            .await?
            .get_queue_attributes()
            .queue_url(self.settings.address.to_string())
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
            .attribute_names(QueueAttributeName::RedrivePolicy)
            .send()
            .await
            .map_err(|error| self.fault("GetQueueAttributes", &error))?;
        let attributes = answer.attributes.unwrap_or_default();
        let number = |name: &QueueAttributeName| attributes.get(name)?.parse().ok();
        let policy = attributes.get(&QueueAttributeName::RedrivePolicy);
        Ok(Depth {
            visible: number(&QueueAttributeName::ApproximateNumberOfMessages).unwrap_or_default(),
            in_flight: number(&QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
                .unwrap_or_default(),
            max_receives: policy.and_then(|policy| max_receives(policy)),
        })
    }

    async fn client(&self) -> Result<&aws_sdk_sqs::Client, Fault> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<aws_sdk_sqs::Client, Fault> {
        let Settings {
            address,
            endpoint,
            identity,
            ..
        } = &*self.settings;
        let region = self.settings.region().map(str::to_owned);
        let own_endpoint = endpoint.clone().or_else(|| address.endpoint());
        let by_sdk = own_endpoint.is_none();
        let access = Access {
            identity: identity.clone(),
            region,
            fips: by_sdk && address.is_fips(),
            dual_stack: by_sdk && address.is_dual_stack(),
        };
        let base = access.load().await;
        if base.region().is_none() {
            let text = format!("no AWS region is known for the queue {address}: set region");
            return Err(Fault::new(Class::Auth, text));
        }
        let mut config = aws_sdk_sqs::config::Builder::from(&base);
        if let Some(endpoint) = own_endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(aws_sdk_sqs::Client::from_conf(config.build()))
    }

    fn fault<E, R>(&self, action: &str, error: &SdkError<E, R>) -> Fault
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: fmt::Debug + 'static,
    {
        let about = format!("the queue {}", self.settings.address);
        let region = self.settings.region().unwrap_or("no region");
        let action = format!("sqs:{action}");
        let Refusal { code, fault } = refusal(&action, error, region, &about, "endpoint");
        if is_missing(&code) {
            let text = format!("{}; is the URL right?", fault.chain());
            return Fault::new(Class::NotFound, text);
        }
        fault
    }

    /// The results of a batch, in the order of its entries.
    fn each(
        &self,
        action: &str,
        count: usize,
        failed: &[BatchResultErrorEntry],
    ) -> Vec<Result<(), Fault>> {
        let mut results: Vec<Result<(), Fault>> = (0..count).map(|_| Ok(())).collect();
        for entry in failed {
            let place = entry
                .id()
                .parse()
                .ok()
                .and_then(|at: usize| results.get_mut(at));
            if let Some(place) = place {
                *place = Err(self.refused_entry(action, entry));
            }
        }
        results
    }

    fn refused_entry(&self, action: &str, entry: &BatchResultErrorEntry) -> Fault {
        let class = if entry.sender_fault() {
            Class::Rejected
        } else {
            Class::RETRYABLE
        };
        let reason = clip(entry.message().unwrap_or("no reason given"), 300);
        let queue = &self.settings.address;
        let code = entry.code();
        Fault::new(
            class,
            format!("sqs:{action} for the queue {queue}: {code}: {reason}"),
        )
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("sqs::Queue")
            .field(&self.settings.address.to_string())
            .finish()
    }
}

/// Whether the code says that there is no such queue. The two protocols of SQS name it differently.
fn is_missing(code: &str) -> bool {
    code.contains("NonExistentQueue") || code.contains("QueueDoesNotExist")
}

/// Whole seconds, as SQS counts; a part of a second counts as one.
fn seconds(time: Duration) -> i32 {
    let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}

fn message(received: Received) -> Option<Message> {
    let attributes = received.attributes.unwrap_or_default();
    let receives = attributes.get(&MessageSystemAttributeName::ApproximateReceiveCount);
    let sent = attributes.get(&MessageSystemAttributeName::SentTimestamp);
    Some(Message {
        id: received.message_id.unwrap_or_default(),
        receipt: Receipt(received.receipt_handle?),
        body: received.body.unwrap_or_default(),
        receives: receives.and_then(|text| text.parse().ok()).unwrap_or(1),
        sent: sent
            .and_then(|text| text.parse().ok())
            .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok()),
    })
}

/// `maxReceiveCount` of a redrive policy; it is a number or a text of digits.
fn max_receives(policy: &str) -> Option<u32> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let count = policy.get("maxReceiveCount")?;
    let number = count.as_u64().and_then(|number| u32::try_from(number).ok());
    number.or_else(|| count.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_policy_tells_its_count_as_a_number_or_as_text() {
        let policy =
            |count: &str| format!(r#"{{"deadLetterTargetArn":"arn","maxReceiveCount":{count}}}"#);
        assert_eq!(max_receives(&policy("5")), Some(5));
        assert_eq!(max_receives(&policy("\"5\"")), Some(5));
        assert_eq!(max_receives("{}"), None);
        assert_eq!(max_receives("no JSON"), None);
    }

    #[test]
    fn a_part_of_a_second_is_not_lost() {
        for (time, expected) in [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)] {
            assert_eq!(seconds(Duration::from_millis(time)), expected, "{time} ms");
        }
    }
}
