// SPDX-License-Identifier: Apache-2.0
//! Matches by what they say of the path: all texts that a path must be or begin with, sorted. The
//! texts that begin a path are its neighbour in that order and those that begin the neighbour, so
//! each text names the longest one that begins it.

use std::sync::Arc;

use regex_syntax::hir::{Hir, HirKind};
use smallvec::SmallVec;

use crate::{PathMatch, Regex};

/// Before the first text.
const NONE: u32 = u32::MAX;

/// Places of matches in a list, by path.
#[derive(Debug)]
pub(super) struct Paths {
    written: Tree,
    /// In lower case; of matches that do not care.
    folded: Tree,
}

#[derive(Debug, Default)]
struct Tree {
    nodes: Box<[Node]>,
    /// What the nodes' ranges are of.
    places: Box<[u32]>,
}

#[derive(Debug)]
struct Node {
    text: Arc<str>,
    /// The longest other text that begins this one.
    up: u32,
    /// From where in `places` stand those that take the text alone, then those that take what
    /// begins with it, and where they end.
    exact: u32,
    prefix: u32,
    end: u32,
}

/// A text with what it is for: in their order exact ones come first.
type Item = (Arc<str>, bool, u32);

// === impl Paths ===

impl Paths {
    /// `matches` with their places, which rise.
    pub fn new<'m>(matches: impl Iterator<Item = (Option<&'m PathMatch>, u32)>) -> Self {
        let (mut written, mut folded): (Vec<Item>, Vec<Item>) = Default::default();
        for (path, at) in matches {
            match path {
                None => written.push(("".into(), true, at)),
                Some(PathMatch::Exact(text)) => written.push((text.clone(), false, at)),
                Some(PathMatch::StringPrefix(text)) => written.push((text.clone(), true, at)),
                Some(PathMatch::ElementPrefix(text)) => {
                    let short = text.strip_suffix('/');
                    written.push((short.map_or_else(|| text.clone(), Arc::from), true, at));
                }
                Some(PathMatch::Regex(regex)) => written.push((beginning(regex).into(), true, at)),
                Some(PathMatch::ExactNoCase(text)) => {
                    folded.push((text.to_ascii_lowercase().into(), false, at));
                }
                Some(PathMatch::StringPrefixNoCase(text)) => {
                    folded.push((text.to_ascii_lowercase().into(), true, at));
                }
            }
        }
        Self { written: Tree::new(written), folded: Tree::new(folded) }
    }

    /// Adds the lists of places that may take a path, each rising.
    pub fn lists<'a>(&'a self, path: &str, out: &mut SmallVec<[&'a [u32]; 8]>) {
        self.written.lists(path, out);
        if !self.folded.nodes.is_empty() {
            self.folded.lists(&path.to_ascii_lowercase(), out);
        }
    }
}

// === impl Tree ===

impl Tree {
    fn new(mut items: Vec<Item>) -> Self {
        items.sort();
        let place = |n: usize| u32::try_from(n).unwrap_or(NONE);
        let mut nodes: Vec<Node> = Vec::new();
        // Those that begin the text at hand, the shortest first.
        let mut open: Vec<u32> = Vec::new();
        for (i, (text, is_prefix, _)) in items.iter().enumerate() {
            let i = place(i);
            if nodes.last().is_none_or(|last| last.text != *text) {
                let begins = |at: &u32| {
                    nodes.get(*at as usize).is_some_and(|node| text.starts_with(&*node.text))
                };
                while open.last().is_some_and(|at| !begins(at)) {
                    open.pop();
                }
                let up = open.last().copied().unwrap_or(NONE);
                open.push(place(nodes.len()));
                nodes.push(Node { text: text.clone(), up, exact: i, prefix: i, end: i });
            }
            if let Some(node) = nodes.last_mut() {
                node.end = i + 1;
                node.prefix = if *is_prefix { node.prefix } else { i + 1 };
            }
        }
        let places = items.into_iter().map(|(_, _, at)| at).collect();
        Self { nodes: nodes.into(), places }
    }

    fn lists<'a>(&'a self, path: &str, out: &mut SmallVec<[&'a [u32]; 8]>) {
        let mut at = self.nodes.partition_point(|node| *node.text <= *path).checked_sub(1);
        while let Some(node) = at.and_then(|at| self.nodes.get(at)) {
            at = Some(node.up as usize);
            if !path.starts_with(&*node.text) {
                continue;
            }
            if node.text.len() == path.len() {
                self.push(node.exact, node.prefix, out);
            }
            self.push(node.prefix, node.end, out);
        }
    }

    fn push<'a>(&'a self, from: u32, to: u32, out: &mut SmallVec<[&'a [u32]; 8]>) {
        if from < to
            && let Some(list) = self.places.get(from as usize..to as usize)
        {
            out.push(list);
        }
    }
}

/// The text that all begin with that an expression takes; often nothing.
pub(super) fn beginning(regex: &Regex) -> String {
    let mut parser = regex_syntax::ParserBuilder::new().utf8(false).build();
    let mut out = Vec::new();
    if let Ok(hir) = parser.parse(regex.source()) {
        begin(&hir, &mut out);
    }
    let whole = match std::str::from_utf8(&out) {
        Ok(text) => text.len(),
        Err(e) => e.valid_up_to(),
    };
    out.truncate(whole);
    String::from_utf8(out).unwrap_or_default()
}

/// Adds what an expression begins with; whether that is all of it.
fn begin(hir: &Hir, out: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(text) => {
            out.extend_from_slice(&text.0);
            true
        }
        HirKind::Capture(capture) => begin(&capture.sub, out),
        HirKind::Concat(parts) => parts.iter().all(|part| begin(part, out)),
        HirKind::Alternation(parts) => {
            out.extend(common(parts));
            false
        }
        HirKind::Repetition(repetition) if repetition.min > 0 => {
            begin(&repetition.sub, out);
            false
        }
        HirKind::Repetition(_) | HirKind::Class(_) => false,
    }
}

/// What all parts begin with.
fn common(parts: &[Hir]) -> Vec<u8> {
    let begins = parts.iter().map(|part| {
        let mut text = Vec::new();
        begin(part, &mut text);
        text
    });
    let shared = begins.reduce(|mut one, other| {
        let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        one.truncate(same);
        one
    });
    shared.unwrap_or_default()
}
