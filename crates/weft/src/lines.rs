// SPDX-License-Identifier: Apache-2.0
//! Hands the lines of this process's log to who reads along (`weft_base::lines`): what the log's
//! filter lets through, and nothing else. Put under the log by `main`.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use weft_base::lines::{Line, hand, is_read};

#[derive(Debug)]
pub struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !is_read() {
            return;
        }
        let of = event.metadata();
        let mut parts = Parts::default();
        event.record(&mut parts);
        hand(Line {
            level: *of.level(),
            target: of.target().to_owned(),
            message: parts.message,
            fields: parts.fields,
        });
    }
}

#[derive(Default)]
struct Parts {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = write!(text, "{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name, text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, value.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn what_is_logged_is_handed_on_with_its_fields() {
        let mut lines = weft_base::lines::read().unwrap();
        let log = tracing_subscriber::registry().with(Lines);
        tracing::subscriber::with_default(log, || {
            tracing::warn!(name = "web", count = 2, why = %"lost", "it {}", "went");
        });
        let line = lines.try_recv().unwrap();
        assert_eq!((line.level, line.message.as_str()), (tracing::Level::WARN, "it went"));
        let fields = [("name", "web"), ("count", "2"), ("why", "lost")];
        assert_eq!(line.fields, fields.map(|(name, value)| (name, value.to_owned())));
    }
}
