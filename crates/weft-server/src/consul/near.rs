// SPDX-License-Identifier: Apache-2.0
//! `?near=`: answers nearest first, by the coordinates that clients of `coordinate/update` tell of
//! nodes. weft measures none itself. As in Consul what has no coordinate comes last, in the order
//! that it had; the node that is asked from comes first, whether or not it has one.

use std::sync::Arc;

use serde_json::Value;
use weft_registry::consul::{COORDINATES, State};

use super::Door;
use super::body::part;
use super::http::Ask;

/// Where answers are looked at from.
#[derive(Clone, Debug)]
pub(crate) struct Near {
    from: Arc<str>,
    place: Option<Place>,
    state: State,
}

/// A network coordinate (Vivaldi): seconds of round trip in a space of eight dimensions.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    at: Vec<f64>,
    height: f64,
    adjustment: f64,
}

// === impl Near ===

impl Near {
    pub fn new(from: Arc<str>, state: State) -> Self {
        Self { place: Place::of(&state, &from), from, state }
    }

    /// Whether it is known where that is.
    pub fn is_known(&self) -> bool {
        self.place.is_some()
    }

    /// Nearest first; what is equally far stays in its order.
    pub fn sort<T>(&self, items: &mut [T], node: impl Fn(&T) -> &str) {
        // Distances are not negative: their bits are in their order.
        items.sort_by_cached_key(|item| self.distance(node(item)).to_bits());
    }

    /// In seconds; infinite where it is not known.
    fn distance(&self, node: &str) -> f64 {
        if *node == *self.from {
            return 0.0;
        }
        let known = self.place.as_ref().zip(Place::of(&self.state, node));
        known.map_or(f64::INFINITY, |(from, to)| from.distance(&to))
    }
}

// === impl Place ===

impl Place {
    fn of(state: &State, node: &str) -> Option<Self> {
        let (record, _) = state.record(COORDINATES, &weft_kinds::world::encode(node))?;
        let told = part(record, "Coord").as_object()?;
        let told = super::body::Fields::new(told, "Coord.");
        let number = |name: &str| told.value(name).and_then(Value::as_f64).unwrap_or(0.0);
        let at = told.value("Vec")?.as_array()?.iter().map(|n| n.as_f64().unwrap_or(0.0)).collect();
        Some(Self { at, height: number("Height"), adjustment: number("Adjustment") })
    }

    /// As Serf estimates it.
    fn distance(&self, other: &Self) -> f64 {
        let squares = self.at.iter().zip(&other.at).map(|(a, b)| (a - b) * (a - b));
        let plain = squares.sum::<f64>().sqrt() + self.height + other.height;
        let adjusted = plain + self.adjustment + other.adjustment;
        if adjusted > 0.0 { adjusted } else { plain.max(0.0) }
    }
}

impl Door {
    /// Where an answer is to be looked at from, if that is asked.
    pub(super) fn near(&self, ask: &Ask) -> Option<Near> {
        self.near_to(ask, ask.params.filled("near")?)
    }

    /// The same of a node, or of who asks.
    pub(super) fn near_to(&self, ask: &Ask, named: &str) -> Option<Near> {
        let from = match named {
            "" => return None,
            "_agent" | "_ip" => match &ask.who.host {
                Some(host) => host.node.clone(),
                None => self.own().node.node.clone(),
            },
            named => self.node_named(named),
        };
        Some(Near::new(from, self.consul().state()))
    }

    /// Whether a coordinate is of a node that is there. The records may be ahead of the catalog,
    /// which wakes nobody who waits for them: what is new is not taken for what was left over.
    pub(super) fn is_placed(&self, state: &State, node: &str) -> bool {
        let view = self.view();
        view.has_node(node) || view.world.revision() < state.revision()
    }

    /// A node as it is spelled here, named alone or with its datacentre, as
    /// `coordinate/datacenters` lists it: NODE.DC.
    pub(super) fn node_named(&self, named: &str) -> Arc<str> {
        let view = self.view();
        view.spelled(match named.rsplit_once('.') {
            Some((bare, dc)) if *dc == *view.own.datacenter && !view.has_node(named) => bare,
            _ => named,
        })
    }
}
