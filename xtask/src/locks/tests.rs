// SPDX-License-Identifier: Apache-2.0
//! What the judge of locks takes and what it refuses.

use super::Answer::{Gone, No, Unknown, Yes};
use super::What::{End, Give, Look, Rest, Take};
use super::*;

/// Began, ended (0 for never), what, whose, answer.
type Row = (u64, u64, What, &'static str, Answer);

fn notes(rows: &[Row]) -> Vec<Note> {
    let note = |&(began, ended, what, whose, answer): &Row| Note {
        began,
        ended: (ended != 0).then_some(ended),
        what,
        session: (!whose.is_empty()).then(|| whose.into()),
        answer,
    };
    rows.iter().map(note).collect()
}

/// `ended`: sessions that went with their machine.
fn check(good: bool, ended: &[&str], rows: &[Row]) {
    let ended = Arc::new(ended.iter().map(|&id| id.into()).collect());
    let said = judge(notes(rows), &ended);
    assert_eq!(said.is_ok(), good, "{rows:?}: {said:?}");
}

#[test]
fn two_holders_at_once_are_found() {
    check(true, &[], &[(1, 2, Take, "a", Yes), (3, 4, Give, "a", Yes), (5, 6, Take, "b", Yes)]);
    check(false, &[], &[(1, 2, Take, "a", Yes), (3, 4, Take, "b", Yes)]);
    // They overlap, but one was first, and neither gave it back.
    check(false, &[], &[(1, 4, Take, "a", Yes), (2, 3, Take, "b", Yes)]);
    check(true, &[], &[(1, 4, Take, "a", Yes), (2, 3, Take, "b", No)]);
    check(true, &[], &[(1, 2, Take, "a", Yes), (3, 4, Take, "a", Yes)]);
    check(false, &[], &[(1, 2, Take, "a", No)]);
    check(false, &[], &[(1, 2, Give, "a", Yes)]);
}

#[test]
fn a_write_without_an_answer_happened_or_did_not() {
    let lost = (1, 2, Take, "a", Unknown);
    check(true, &[], &[lost, (3, 4, Look, "", Yes)]);
    check(true, &[], &[lost, (3, 4, Look, "a", Yes), (5, 6, Take, "b", No)]);
    check(false, &[], &[lost, (3, 4, Look, "b", Yes)]);
    // Both cannot be: it was seen, and then it was as if it had never been.
    check(false, &[], &[lost, (3, 4, Look, "a", Yes), (5, 6, Look, "", Yes)]);
    // Its server is dead: it does not happen later. One whose server lives may.
    check(false, &[], &[lost, (3, 4, Look, "", Yes), (5, 6, Look, "a", Yes)]);
    let open = (1, 0, Take, "a", Unknown);
    check(true, &[], &[open, (3, 4, Look, "", Yes), (5, 6, Look, "a", Yes)]);
    // An acknowledged lock that is gone after a kill.
    let after = [(3, 4, Take, "b", Unknown), (5, 6, Look, "b", Yes)];
    check(false, &[], &[&[(1, 2, Take, "a", Yes)], &after[..]].concat());
    check(true, &[], &[&[(1, 2, Give, "a", Unknown)], &after[..]].concat());
}

#[test]
fn a_destroyed_session_lets_go_and_takes_nothing() {
    let after = |more: &[Row]| {
        let first = [(1, 2, Take, "a", Yes), (3, 6, End, "a", Yes)];
        [&first[..], more].concat()
    };
    check(true, &[], &after(&[(4, 5, Take, "b", Yes)]));
    check(true, &[], &after(&[(4, 5, Take, "b", No), (7, 8, Take, "b", Yes)]));
    // It was told that its end is over: what it held is free.
    check(false, &[], &after(&[(7, 8, Take, "b", No)]));
    check(false, &[], &after(&[(7, 8, Take, "a", Yes)]));
    check(true, &[], &after(&[(7, 8, Take, "a", Gone)]));
    check(false, &[], &[(1, 2, Take, "a", Gone)]);
}

#[test]
fn a_session_that_went_with_its_machine_lets_go_once_and_for_all() {
    let (took, other) = ((1, 2, Take, "a", Yes), (3, 4, Take, "b", Yes));
    check(false, &[], &[took, other]);
    check(true, &["a"], &[took, other]);
    check(true, &["a"], &[took, (3, 4, Take, "b", No), (5, 6, Take, "a", Gone)]);
    check(true, &["a"], &[took, (3, 4, Look, "", Yes), (5, 6, Take, "a", Gone)]);
    // Whoever was overtaken holds nothing any more, and gets nothing.
    check(false, &["a"], &[took, other, (5, 6, Give, "a", Yes)]);
    check(false, &["a"], &[took, other, (5, 6, Give, "b", Yes), (7, 8, Take, "a", Yes)]);
    check(false, &["a"], &[took, (3, 4, Take, "a", Gone), (5, 6, Take, "a", Yes)]);
    check(false, &["b"], &[took, other]);
}

/// A lock that is never let go refuses everybody without end, which each answer by itself explains.
#[test]
fn a_lock_that_never_comes_free_is_seen_when_all_is_quiet() {
    let (took, gone) = ((1, 2, Take, "a", Yes), (3, 4, Take, "a", Gone));
    let late = [took, gone, (5, 6, Look, "a", Yes), (7, 8, Take, "b", No)];
    let then = |rest: Row| [&late[..], &[rest]].concat();
    check(true, &["a"], &late);
    check(false, &["a"], &then((9, 10, Rest, "a", Yes)));
    check(true, &["a"], &then((9, 10, Rest, "", Yes)));
    // One that was asked to end is no better.
    let ended = [took, (3, 4, End, "a", Yes)];
    check(false, &[], &[&ended[..], &[(5, 6, Rest, "a", Yes)]].concat());
    check(true, &[], &[&ended[..], &[(5, 6, Rest, "", Yes)]].concat());
    // Who is there may hold it for as long as it likes, and nobody takes it from there.
    check(true, &[], &[took, (3, 4, Rest, "a", Yes)]);
    check(false, &[], &[took, (3, 4, Rest, "", Yes)]);
    check(false, &["a"], &[took, (3, 4, Rest, "b", Yes)]);
}

/// Twenty clients lose their answers at once, several times: decided at once all the same.
#[test]
fn many_lost_answers_do_not_make_the_search_grow() {
    let names: Vec<&'static str> =
        (0..20).map(|n| &*Box::leak(format!("s{n:02}").into_boxed_str())).collect();
    let (mut rows, mut now) = (Vec::new(), 1);
    for round in 0..6 {
        for name in &names {
            rows.push((now, now + 40, Take, *name, Unknown));
            now += 1;
        }
        now += 40;
        let holder = names[(round * 7) % names.len()];
        rows.push((now, now + 1, Look, holder, Yes));
        rows.push((now + 2, now + 3, Give, holder, Yes));
        now += 4;
    }
    check(true, &names, &rows);
}

#[test]
fn the_first_moment_that_nothing_explains_is_named() {
    let mut rows: Vec<Row> = Vec::new();
    for n in 0..50 {
        rows.push((n * 4 + 1, n * 4 + 2, Take, "a", Yes));
        rows.push((n * 4 + 3, n * 4 + 4, Give, "a", Yes));
    }
    rows[40].4 = No;
    let said = judge(notes(&rows), &Arc::default()).unwrap_err().to_string();
    assert!(said.contains("up to 82:"), "{said}");
}

#[test]
fn a_file_is_read_and_judged() {
    let folder = std::env::temp_dir().join(format!("weft-locks-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("history.json");
    let text = |holder: &str| {
        format!(
            r#"{{"ended": [], "locks": {{"1/one": [
              {{"began": 1, "ended": 2, "what": "take", "session": "x", "answer": "yes"}},
              {{"began": 3, "ended": null, "what": "give", "session": "x", "answer": "unknown"}},
              {{"began": 5, "ended": 6, "what": "look", "session": {holder},
                "answer": "yes"}}]}}}}"#
        )
    };
    let args = [file.to_str().unwrap().to_owned()];
    std::fs::write(&file, text("null")).unwrap();
    run(Path::new("."), &args).unwrap();
    std::fs::write(&file, text("\"y\"")).unwrap();
    let said = format!("{:#}", run(Path::new("."), &args).unwrap_err());
    assert!(said.contains("1/one") && said.contains("up to 6"), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}
