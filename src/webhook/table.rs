//! All webhooks of a configuration.

use std::{collections::HashMap, sync::Arc};

use super::Webhook;
use crate::path::CanonicalPath;

/// The webhooks, found by their path.
#[derive(Debug, Default)]
pub struct Webhooks {
    list: Vec<Arc<Webhook>>,
    by_path: HashMap<Box<str>, usize>,
}

impl Webhooks {
    /// Of these, whose paths differ.
    pub fn new(list: Vec<Arc<Webhook>>) -> Self {
        let by_path = list.iter().enumerate().map(|(place, webhook)| (webhook.path.decoded().into(), place)).collect();
        Self { list, by_path }
    }

    /// The webhook whose path is exactly `path`.
    pub fn find(&self, path: &CanonicalPath<'_>) -> Option<&Arc<Webhook>> {
        self.by_path.get(path.decoded()).and_then(|place| self.list.get(*place))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Webhook>> {
        self.list.iter()
    }

    /// Counts on where `before` is, whose place this table takes.
    pub fn go_on_from(&self, before: &Self) {
        for webhook in &self.list {
            let same = before.by_path.get(webhook.path.decoded()).and_then(|place| before.list.get(*place));
            let Some(same) = same else { continue };
            webhook.tally.store(same.tally.load_full());
            webhook.outcomes.store(same.outcomes.load_full());
            for key in &webhook.keys {
                if let Some(other) = same.keys.iter().find(|other| other.id() == key.id()) {
                    key.go_on_from(other);
                }
            }
        }
    }
}
