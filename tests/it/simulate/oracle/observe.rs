//! A route that observes writes nothing.

use super::super::trace::{About, Call, Operation, Rules};
use super::Oracle;

impl Oracle {
    /// A request leaves: where all routes to the repository observe it writes nothing, unless a
    /// person has ordered it. Content that was on its way before a reload may still arrive.
    pub(super) fn judge_observing(&mut self, call: &Call) {
        let writes = matches!(
            call.operation,
            Operation::BeginUpload
                | Operation::SendChunk
                | Operation::FinishUpload
                | Operation::PutManifest
        );
        if !writes || !self.is_observed(call) {
            return;
        }
        let (registry, repository) = (&call.registry, &call.repository);
        if self.guards.acts_in(call.process, registry, repository) {
            return;
        }
        let text = format!("{:?} to {registry}/{repository}", call.operation);
        let place = match &call.about {
            About::Tag(tag) => Some(call.place(tag)),
            About::Content(_) | About::Repository => None,
        };
        self.find("a route that observes writes nothing", place.as_ref(), text);
    }

    fn is_observed(&self, call: &Call) -> bool {
        let here = |rules: &&Rules| rules.leads_to(&call.registry, &call.repository);
        let of = |all: Option<&Vec<Rules>>| -> Vec<bool> {
            let rules = all.into_iter().flatten().filter(here);
            rules.map(|rules| rules.observes).collect()
        };
        let now = of(self.rules.get(&call.process));
        let before = of(self.former.get(&call.process));
        let is_by_tag = matches!(call.about, About::Tag(_));
        let observes = !now.is_empty() && now.into_iter().all(|observes| observes);
        observes && (is_by_tag || before.into_iter().all(|observes| observes))
    }
}
