// SPDX-License-Identifier: Apache-2.0
//! Protobuf's JSON form read field by field: names in snake_case or camelCase, numbers as numbers
//! or text, durations as `1.5s`, messages of any type by their `@type`. What a reader did not ask
//! for when it lets go of a message is reported as unsupported, with its path. Called by `ingest`.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde_json::{Map, Value};
use thiserror::Error;
use weft_base::issue::{FieldPath, Issue};

/// Text that is neither JSON nor YAML, or no object.
#[derive(Debug, Error)]
pub enum Unreadable {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Yaml(String),
    #[error("a bootstrap is an object with static_resources; this is something else")]
    NoObject,
}

/// Collects what was found while a bootstrap is read.
#[derive(Debug, Default)]
pub struct Found {
    errors: RefCell<Vec<Issue>>,
    unsupported: RefCell<Vec<Issue>>,
}

/// Where a value stands; a path is written only when there is something to say about it.
#[derive(Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

/// A message being read.
pub struct Message<'a> {
    map: &'a Map<String, Value>,
    at: At<'a>,
    found: &'a Found,
    /// Which of the map's entries were asked for, by place.
    asked: RefCell<Vec<bool>>,
    /// Somebody has said already what is wrong with all of it.
    waived: Cell<bool>,
    /// What weft does not do in it is an error, which nobody can wave through.
    firm: Cell<bool>,
}

/// A value of a list, or of a field whose form is not known beforehand.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    pub value: &'a Value,
    pub at: At<'a>,
    found: &'a Found,
    firm: bool,
}

/// Text as a tree. JSON when it begins like that, otherwise YAML.
///
/// # Errors
/// Where the text is wrong.
pub fn parse(text: &str) -> Result<Map<String, Value>, Unreadable> {
    let value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text)?
    } else {
        serde_saphyr::from_str(text).map_err(|e| Unreadable::Yaml(e.to_string()))?
    };
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Unreadable::NoObject),
    }
}

/// Reads one duration (`5s`, `0.25s`) as milliseconds, rounded up.
pub fn duration_ms(text: &str) -> Option<u64> {
    let (whole, part) =
        text.strip_suffix('s')?.split_once('.').unwrap_or((text.strip_suffix('s')?, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let nanos: u64 = format!("{part:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(nanos.div_ceil(1_000_000))
}

// === impl Found ===

impl Found {
    pub fn error(&self, at: &At<'_>, message: impl Into<String>) {
        self.errors.borrow_mut().push(Issue::error(at.path(), message));
    }

    pub fn unsupported(&self, at: &At<'_>, message: impl Into<String>) {
        self.unsupported.borrow_mut().push(Issue::error(at.path(), message));
    }

    /// Errors, then what is unsupported.
    pub fn into_parts(self) -> (Vec<Issue>, Vec<Issue>) {
        (self.errors.into_inner(), self.unsupported.into_inner())
    }

    /// The root of a file.
    pub fn root<'a>(&'a self, map: &'a Map<String, Value>) -> Message<'a> {
        Message::new(map, At { parent: None, step: Step::Root }, self, false)
    }
}

// === impl At ===

impl<'a> At<'a> {
    pub fn path(&self) -> FieldPath {
        let above = self.parent.map_or_else(FieldPath::root, At::path);
        match self.step {
            Step::Root => above,
            Step::Field(name) => above.field(name),
            Step::Index(i) => above.index(i),
        }
    }
}

impl fmt::Debug for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path())
    }
}

// === impl Message ===

impl<'a> Message<'a> {
    fn new(map: &'a Map<String, Value>, at: At<'a>, found: &'a Found, firm: bool) -> Self {
        let asked = RefCell::new(vec![false; map.len()]);
        Self { map, at, found, asked, waived: Cell::new(false), firm: Cell::new(firm) }
    }

    pub fn at(&self) -> &At<'a> {
        &self.at
    }

    /// Says that a value is wrong.
    pub fn error(&self, name: &str, message: impl Into<String>) {
        self.found.error(&self.below(name), message);
    }

    /// Says that weft does not do this.
    pub fn unsupported(&self, name: &str, message: impl Into<String>) {
        if self.firm.get() {
            self.error(name, message);
        } else {
            self.found.unsupported(&self.below(name), message);
        }
    }

    /// Whether what weft does not do here and in the messages read from here on is an error: of
    /// what keeps somebody out nothing may be left out.
    pub fn firm(&self, yes: bool) {
        self.firm.set(yes);
    }

    /// Says what is not done about a field, unless its value is one of these: that is what weft
    /// does anyhow. Numbers and flags are written as text, durations may be in any form.
    pub fn not_done(&self, name: &str, anyhow: &[&str], why: &str) {
        let Some(value) = self.raw(name) else { return };
        let said = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let is = |done: &&str| {
            let ms = duration_ms(&said);
            said.eq_ignore_ascii_case(done) || (ms.is_some() && ms == duration_ms(done))
        };
        if !anyhow.iter().any(is) {
            self.unsupported(name, why);
        }
    }

    /// Fields that change nothing that anybody could see: names and notes, sizes of buffers.
    pub fn pass_over(&self, names: &[&str]) {
        for name in names {
            let _ = self.raw(name);
        }
    }

    /// Reports nothing of what was not asked for: it is reported as a whole.
    pub fn waive(&self) {
        self.waived.set(true);
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// Whether all that is set was asked for.
    pub fn is_read(&self) -> bool {
        self.map.values().zip(self.asked.borrow().iter()).all(|(v, asked)| *asked || v.is_null())
    }

    /// Whether one of these is set, without having asked for it.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str())
    }

    pub fn item<'s>(&'s self, name: &'s str) -> Option<Item<'s>> {
        let value = self.raw(name)?;
        Some(Item { value, at: self.below(name), found: self.found, firm: self.firm.get() })
    }

    pub fn text(&self, name: &str) -> Option<&'a str> {
        let value = self.raw(name)?;
        if value.as_str().is_none() {
            self.error(name, format!("expected text, found {}", kind(value)));
        }
        value.as_str()
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        let value = self.raw(name)?;
        if value.as_bool().is_none() {
            self.error(name, format!("expected true or false, found {}", kind(value)));
        }
        value.as_bool()
    }

    pub fn float(&self, name: &str) -> Option<f64> {
        let value = self.raw(name)?;
        let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
        if number.is_none() {
            self.error(name, format!("expected a number, found {}", kind(value)));
        }
        number
    }

    pub fn number<N: TryFrom<u64>>(&self, name: &str) -> Option<N> {
        let item = self.item(name)?;
        item.number()
    }

    pub fn duration(&self, name: &str) -> Option<u64> {
        let value = self.raw(name)?;
        let ms = value.as_str().and_then(duration_ms);
        if ms.is_none() {
            self.error(
                name,
                format!("expected a duration such as \"5s\" or \"0.25s\", found {value}"),
            );
        }
        ms
    }

    /// One of a few words.
    pub fn choice(&self, name: &str) -> Option<&'a str> {
        self.text(name)
    }

    /// One of an enum's names, in upper case: Envoy reads them in any.
    pub fn word(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_ascii_uppercase)
    }

    pub fn message<'s>(&'s self, name: &'s str) -> Option<Message<'s>> {
        self.item(name)?.into_message()
    }

    pub fn list<'s>(&'s self, name: &'s str) -> Vec<Item<'s>> {
        // The list's own place lives as long as this message: elements name it by value.
        let Some(value) = self.raw(name) else { return Vec::new() };
        let Some(list) = value.as_array() else {
            self.error(name, format!("expected a list, found {}", kind(value)));
            return Vec::new();
        };
        let firm = self.firm.get();
        let item = |value| Item { value, at: self.below(name), found: self.found, firm };
        list.iter().map(item).collect()
    }

    /// Calls `f` with every message of a list.
    pub fn each(&self, name: &str, mut f: impl FnMut(Message<'_>)) {
        let list = self.below(name);
        for (i, item) in self.list(name).into_iter().enumerate() {
            let at = At { parent: Some(&list), step: Step::Index(i) };
            let item = Item { at, ..item };
            if let Some(message) = item.into_message() {
                f(message);
            }
        }
    }

    /// Every message of a list, as something else.
    pub fn map<T>(&self, name: &str, mut f: impl FnMut(Message<'_>) -> Option<T>) -> Vec<T> {
        let mut out = Vec::new();
        self.each(name, |message| out.extend(f(message)));
        out
    }

    pub fn texts(&self, name: &str) -> Vec<&'a str> {
        let Some(value) = self.raw(name) else { return Vec::new() };
        let texts: Option<Vec<&str>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.unwrap_or_else(|| {
            self.error(name, "expected a list of texts");
            Vec::new()
        })
    }

    /// Every entry of a map of messages.
    pub fn entries(&self, name: &str, mut f: impl FnMut(&str, Message<'_>)) {
        let Some(value) = self.raw(name) else { return };
        let Some(map) = value.as_object() else {
            self.error(name, format!("expected an object, found {}", kind(value)));
            return;
        };
        let above = self.below(name);
        for (key, value) in map {
            let at = At { parent: Some(&above), step: Step::Field(key) };
            let item = Item { value, at, found: self.found, firm: self.firm.get() };
            if let Some(message) = item.into_message() {
                f(key, message);
            }
        }
    }

    /// The message of a field of any type, with the type's name without its prefix.
    pub fn any<'s>(&'s self, name: &'s str) -> Option<(&'s str, Message<'s>)> {
        self.item(name)?.into_message()?.typed()
    }

    /// A message of any type.
    pub fn typed(self) -> Option<(&'a str, Self)> {
        let Some(url) = self.text("@type") else {
            self.found.error(&self.at, "it has no @type, which says what it is");
            self.waive();
            return None;
        };
        let (_, name) = url.rsplit_once('/').unwrap_or(("", url));
        Some((name, self))
    }

    fn below<'s>(&'s self, name: &'s str) -> At<'s> {
        At { parent: Some(&self.at), step: Step::Field(name) }
    }

    /// A field by its name in snake_case, or the same in camelCase.
    fn raw(&self, name: &str) -> Option<&'a Value> {
        let mut given = None;
        for (i, (key, value)) in self.map.iter().enumerate() {
            if key == name || is_camel(key, name) {
                if let Some(asked) = self.asked.borrow_mut().get_mut(i) {
                    *asked = true;
                }
                if given.replace(value).is_some() {
                    self.error(name, "it is given twice, in both of its spellings");
                }
            }
        }
        given.filter(|v| !v.is_null())
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        if self.waived.get() {
            return;
        }
        let asked = self.asked.borrow();
        let unasked = self.map.iter().zip(asked.iter()).filter(|((_, v), a)| !**a && !v.is_null());
        for ((key, _), _) in unasked {
            self.unsupported(key, "weft has no such field");
        }
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({:?})", self.at)
    }
}

// === impl Item ===

impl<'a> Item<'a> {
    pub fn into_message(self) -> Option<Message<'a>> {
        match self.value.as_object() {
            Some(map) => Some(Message::new(map, self.at, self.found, self.firm)),
            None => {
                self.found
                    .error(&self.at, format!("expected an object, found {}", kind(self.value)));
                None
            }
        }
    }

    pub fn number<N: TryFrom<u64>>(self) -> Option<N> {
        let number = self.value.as_u64().or_else(|| self.value.as_str()?.parse().ok());
        let fits = number.and_then(|n| N::try_from(n).ok());
        if fits.is_none() {
            self.found.error(&self.at, format!("{} is no number that fits here", self.value));
        }
        fits
    }
}

impl fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({:?})", self.at)
    }
}

/// Whether a key is the camelCase of a snake_case name.
fn is_camel(key: &str, name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let mut key = key.chars();
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
            continue;
        }
        let wanted = if upper { c.to_ascii_uppercase() } else { c };
        upper = false;
        if key.next() != Some(wanted) {
            return false;
        }
    }
    key.next().is_none()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
