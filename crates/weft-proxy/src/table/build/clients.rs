// SPDX-License-Identifier: Apache-2.0
//! Backends that some clients have in the place of everybody's: control sends both to the proxies
//! of these. Called when a host is built; looks at names only.

use std::collections::BTreeMap;

use weft_model::for_clients;

use super::Child;

/// The children of a host with those in place that are for this proxy; it is sent no other's. Of
/// several for one name the closest counts.
pub(super) fn preferred<T: Clone>(mut children: BTreeMap<Child, T>) -> BTreeMap<Child, T> {
    let own = |(child, held): (&Child, &T)| {
        let (child, clients) = for_clients(child)?;
        Some((clients.closeness(), child.into(), held.clone()))
    };
    let mut own: Vec<(_, Child, T)> = children.iter().filter_map(own).collect();
    if !own.is_empty() {
        own.sort_by_key(|(closeness, ..)| *closeness);
        children.retain(|child, _| for_clients(child).is_none());
        children.extend(own.into_iter().map(|(_, child, held)| (child, held)));
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_a_namespaces_clients_takes_the_place_of_everybodys() {
        let names = [
            "",
            "backend/80",
            "backend/80/v1",
            "backend/80~for~web",
            "endpoints/80",
            "backend/80/v1~for~web~with~20~a=b",
            "backend/80/v1~for~web~with~3~c=d",
            "backend/80/v1~for~web",
        ];
        let children: BTreeMap<Child, usize> =
            names.iter().enumerate().map(|(i, n)| ((*n).into(), i)).collect();
        let found: Vec<(String, usize)> =
            preferred(children).into_iter().map(|(n, i)| (n.to_string(), i)).collect();
        let want = [("", 0), ("backend/80", 3), ("backend/80/v1", 6), ("endpoints/80", 4)];
        assert_eq!(found, want.map(|(n, i)| (n.to_owned(), i)));
    }
}
