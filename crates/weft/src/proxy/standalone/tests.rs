// SPDX-License-Identifier: Apache-2.0
//! Files that change at the worst moment.

use weft_proxy::feed;

use super::*;

fn written(dir: &Path, listener: &str, said: &str) -> Source {
    let path = dir.join("proxy.yaml");
    let text = format!(
        "listeners:\n  - {{name: web, bind: \"127.0.0.1:1\"{listener}}}\nroutes:\n  - rules: \
         [{{answer: {{status: 200, body: \"{said}\"}}}}]\n"
    );
    fs::write(&path, text).unwrap();
    Source::File(path)
}

/// Nobody takes what it hands over, which is not what is looked at here.
async fn keeper(source: &Source, loaded: Loaded) -> Keeper {
    let (feed, deliveries) = feed();
    drop(deliveries);
    Keeper::start(source.clone(), loaded, feed).await.unwrap()
}

#[tokio::test]
async fn a_change_while_a_file_is_read_is_seen_at_the_next_look() {
    let dir = tempfile::tempdir().unwrap();
    let source = written(dir.path(), "", "one");
    let loaded = source.load().unwrap();
    written(dir.path(), "", "another");
    let mut keeper = keeper(&source, loaded).await;
    assert!(keeper.has_changed());
    keeper.read_again().await;
    assert!(!keeper.has_changed());
}

#[tokio::test]
async fn files_that_a_refused_configuration_names_are_looked_at_too() {
    let dir = tempfile::tempdir().unwrap();
    let source = written(dir.path(), "", "one");
    let mut keeper = keeper(&source, source.load().unwrap()).await;
    written(dir.path(), ", tls: [{certificate: new.pem, key: new.key}]", "one");
    assert!(keeper.has_changed());
    keeper.read_again().await;
    // It is refused once, and not at each look.
    assert!(!keeper.has_changed());
    assert!(keeper.seen.contains_key(&dir.path().join("new.key")), "{:?}", keeper.seen);
    fs::write(dir.path().join("new.pem"), "x").unwrap();
    assert!(keeper.has_changed());
}
