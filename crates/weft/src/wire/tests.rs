// SPDX-License-Identifier: Apache-2.0
//! What is told arrives: any way from one state of a host to another ends in the same.

use super::*;

fn pod(name: &str, uid: &str, phase: &str, filler: usize) -> (PodKey, Arc<DesiredPod>) {
    let upstream = Upstream {
        service: "user".into(),
        port_name: "http".into(),
        port: 80,
        local_port: 20_001,
        address: "127.96.0.9".parse().ok(),
    };
    let mut configs = Configs::default();
    let secret = BTreeMap::from([
        ("password".into(), Data::Text("x".repeat(filler).into())),
        ("key".into(), Data::Bytes([0, 159, 255][..].into())),
    ]);
    configs.secrets.insert("db".into(), secret);
    let pod = DesiredPod {
        object: Arc::new(json!({
            "metadata": { "name": name, "namespace": "shop", "uid": uid,
                          "managedFields": [{ "manager": "m" }] },
            "spec": { "nodeName": "m1" },
            "status": { "phase": phase, "conditions": [{ "type": "Ready" }] },
        })),
        address: "127.64.0.1".parse().unwrap(),
        addresses: vec!["127.64.0.1".parse().unwrap()],
        admin_address: "127.64.0.1".parse().unwrap(),
        mode: PodsMode::Process,
        upstreams: vec![upstream],
        configs,
    };
    (PodKey::new("shop", name), Arc::new(pod))
}

fn view(pods: &[(PodKey, Arc<DesiredPod>)]) -> HostView {
    HostView::new(&pods.iter().cloned().collect(), Checks::new())
}

fn mirrored(mirror: &Mirror) -> HostView {
    let mut view = HostView::new(&mirror.desired(), mirror.checks().clone());
    // Namespaces without pods are kept by whoever was told of them.
    view.upstreams.clone_from(&mirror.upstreams);
    view
}

#[test]
fn a_whole_and_then_changes_give_what_is_there() {
    let states = [
        view(&[]),
        view(&[pod("a", "1", "Pending", 1), pod("b", "2", "Pending", 1)]),
        view(&[pod("a", "1", "Running", 1), pod("b", "3", "Pending", 1)]),
        view(&[pod("b", "3", "Running", 2)]),
        view(&[pod("b", "3", "Running", 2), pod("c", "4", "Pending", 1)]),
    ];
    let mut mirror = Mirror::default();
    let mut before: Option<&HostView> = None;
    for state in &states {
        for update in state.updates(before, 7) {
            mirror.apply(update).unwrap();
        }
        assert_eq!(mirrored(&mirror).pods, state.pods);
        before = Some(state);
    }
    // A stream that begins again tells all, and what is not told is gone.
    for update in states[1].updates(None, 8) {
        mirror.apply(update).unwrap();
    }
    assert_eq!(mirrored(&mirror), states[1]);
    assert_eq!(mirror.desired()[&PodKey::new("shop", "a")].upstreams.len(), 1);
    assert_eq!(mirror.uid(&PodKey::new("shop", "b")).map(|u| &**u), Some("2"));
}

#[test]
fn what_the_agent_reported_is_not_told_back() {
    let (key, one) = pod("a", "1", "Running", 1);
    let mut other = DesiredPod::clone(&one);
    let mut object = Value::clone(&other.object);
    object["status"]["conditions"] = json!([]);
    object["metadata"]["managedFields"] = json!([]);
    other.object = Arc::new(object);
    let (before, after) = (view(&[(key.clone(), one)]), view(&[(key, Arc::new(other))]));
    assert_eq!(before, after);
    let updates = after.updates(Some(&before), 9);
    assert_eq!(updates.len(), 1);
    assert!(updates[0].upserts.is_empty() && updates[0].checks.is_none());
}

#[test]
fn a_large_whole_comes_in_pieces_and_counts_only_when_complete() {
    let pods: Vec<_> =
        (0..8).map(|i| pod(&format!("p{i}"), "1", "Pending", MESSAGE_BYTES / 3)).collect();
    let state = view(&pods);
    let updates = state.updates(None, 1);
    assert_eq!(updates.len(), 4);
    assert!(updates[0].whole && updates[1..].iter().all(|u| !u.whole));
    let mut mirror = Mirror::default();
    mirror.apply(view(&[pod("old", "1", "Pending", 1)]).updates(None, 0).remove(0)).unwrap();
    for update in &updates[..3] {
        assert!(!mirror.apply(update.clone()).unwrap());
        assert_eq!(mirror.desired().len(), 1, "half of it is nothing");
    }
    // The stream breaks, and begins again.
    for update in &updates {
        mirror.apply(update.clone()).unwrap();
    }
    assert_eq!(mirrored(&mirror), state);
}
