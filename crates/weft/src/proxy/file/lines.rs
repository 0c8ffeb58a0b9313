// SPDX-License-Identifier: Apache-2.0
//! On which line of a YAML text each of its fields stands, by the field's path.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use weft_base::issue::FieldPath;

/// The parts of a text that have places.
enum Tree {
    Leaf,
    List(Vec<Spanned<Tree>>),
    Map(Vec<(String, Spanned<Tree>)>),
}

/// Lines by path.
#[derive(Debug, Default)]
pub struct Lines(HashMap<FieldPath, u64>);

impl Lines {
    /// Of a text that is YAML; nothing is known of any other.
    pub fn of(text: &str) -> Self {
        let mut out = Self::default();
        if let Ok(tree) = serde_saphyr::from_str::<Spanned<Tree>>(text) {
            out.put(&FieldPath::root(), &tree);
        }
        out
    }

    /// The line of a field, or of what it should stand in.
    pub fn line(&self, path: &FieldPath) -> Option<u64> {
        let mut text = path.as_str();
        loop {
            if let Some(line) = self.0.get(&FieldPath::new(text)) {
                return Some(*line);
            }
            let end = text.rfind(['.', '['])?;
            text = text.get(..end)?;
        }
    }

    fn put(&mut self, path: &FieldPath, tree: &Spanned<Tree>) {
        self.0.insert(path.clone(), tree.referenced.line());
        match &tree.value {
            Tree::Leaf => {}
            Tree::List(all) => {
                for (i, each) in all.iter().enumerate() {
                    self.put(&path.index(i), each);
                }
            }
            Tree::Map(all) => {
                for (name, each) in all {
                    self.put(&path.field(name), each);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Places)
    }
}

struct Places;

impl<'de> Visitor<'de> for Places {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut out = Vec::new();
        while let Some(entry) = map.next_entry()? {
            out.push(entry);
        }
        Ok(Tree::Map(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut out = Vec::new();
        while let Some(each) = list.next_element()? {
            out.push(each);
        }
        Ok(Tree::List(out))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Tree, D::Error> {
        IgnoredAny::deserialize(inner).map(|_| Tree::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_the_line_it_stands_on() {
        let lines = Lines::of("a: 1\nb:\n  - c: {d: 2}\n    e: x\n  - f\n");
        let line = |path: &str| lines.line(&FieldPath::new(path));
        assert_eq!(line("a"), Some(1));
        assert_eq!(line("b[0].c.d"), Some(3));
        assert_eq!(line("b[0].e"), Some(4));
        assert_eq!(line("b[1]"), Some(5));
        // What is missing is missed where it should stand.
        assert_eq!(line("b[0].e.none"), Some(4));
    }
}
