// SPDX-License-Identifier: Apache-2.0
//! Schedules beside the times that robfig/cron, which Kubernetes uses, gives for them.

use super::*;

fn next(schedule: &str, zone: Option<&str>, after: &str) -> String {
    let schedule = Schedule::parse(schedule, zone).unwrap();
    schedule.next(after.parse().unwrap()).map_or("never".to_owned(), |t| t.to_string())
}

#[test]
fn the_next_time_of_each_form() {
    for (schedule, after, expect) in [
        ("0/15 * * * *", "2012-07-09T14:45:00Z", "2012-07-09T15:00:00Z"),
        ("0/15 * * * *", "2012-07-09T14:59:59Z", "2012-07-09T15:00:00Z"),
        ("*/5 * * * *", "2026-01-01T00:02:30Z", "2026-01-01T00:05:00Z"),
        ("20-35/15 * * * *", "2012-07-09T15:45:00Z", "2012-07-09T16:20:00Z"),
        ("* * * * *", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
        ("30 3 * feb mon", "2026-11-21T00:00:00Z", "2027-02-01T03:30:00Z"),
        ("0 0 29 2 ?", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 31 4 *", "2026-01-01T00:00:00Z", "never"),
        // Either the day or the weekday when both are said.
        ("0 0 1,15 * sun", "2012-07-08T00:00:00Z", "2012-07-15T00:00:00Z"),
        ("0 0 1,15 * sun", "2012-07-15T00:00:00Z", "2012-07-22T00:00:00Z"),
        // A star makes it both: 1, 11, 21 and 31 that are Sundays.
        ("0 0 */10 * sun", "2012-07-15T00:00:00Z", "2012-10-21T00:00:00Z"),
        ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
        ("@weekly", "2026-11-21T12:00:00Z", "2026-11-22T00:00:00Z"),
        ("@every 1h30m", "2026-01-01T00:00:00.9Z", "2026-01-01T01:30:00Z"),
    ] {
        assert_eq!(next(schedule, None, after), expect, "{schedule} after {after}");
    }
}

#[test]
fn zones_and_their_summers() {
    let berlin = Some("Europe/Berlin");
    assert_eq!(next("0 9 * * *", berlin, "2026-07-01T00:00:00Z"), "2026-07-01T07:00:00Z");
    assert_eq!(next("0 9 * * *", berlin, "2026-12-01T00:00:00Z"), "2026-12-01T08:00:00Z");
    // 02:30 does not exist on 29 March: it is left out.
    assert_eq!(next("30 2 * * *", berlin, "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
    // Every hour stays every hour when the clock goes back.
    assert_eq!(next("0 * * * *", berlin, "2026-10-25T00:00:00Z"), "2026-10-25T01:00:00Z");
    assert_eq!(next("0 * * * *", berlin, "2026-10-25T01:00:00Z"), "2026-10-25T02:00:00Z");
    assert!(zone("Mars/Olympus").unwrap_err().contains("unknown time zone"));
    assert!(zone("Local").is_err());
}

#[test]
fn the_latest_time_that_passed() {
    let latest = |schedule: &str, since: &str, now: &str| {
        let schedule = Schedule::parse(schedule, None).unwrap();
        let found = schedule.latest(since.parse().unwrap(), now.parse().unwrap());
        found.map_or("none".to_owned(), |t| t.to_string())
    };
    let day = "2026-11-21T10:00:30Z";
    assert_eq!(latest("* * * * *", "2020-01-01T00:00:00Z", day), "2026-11-21T10:00:00Z");
    assert_eq!(latest("0 8 * * *", "2026-11-01T00:00:00Z", day), "2026-11-21T08:00:00Z");
    assert_eq!(latest("0 8 * * *", "2026-11-21T08:00:00Z", day), "none");
    assert_eq!(latest("0 0 1 1 *", "2020-06-01T00:00:00Z", day), "2026-01-01T00:00:00Z");
    assert_eq!(latest("@every 10m", "2026-11-21T09:45:00Z", day), "2026-11-21T09:55:00Z");
}

#[test]
fn what_cannot_be_read_says_why() {
    for (schedule, says) in [
        ("", "expected exactly 5 fields, found 0"),
        ("* * * *", "found 4"),
        ("60 * * * *", "minute \"60\" is not within 0 and 59"),
        ("* * 0 * *", "day of month"),
        ("* * * * 7", "day of week"),
        ("*/0 * * * *", "minute"),
        ("9-5 * * * *", "minute"),
        ("x * * * *", "is no number"),
        ("-1 * * * *", "is no number"),
        ("@reboot", "unrecognized descriptor"),
        ("@every 0s", "failed to parse duration"),
        ("@every 1d", "failed to parse duration"),
        ("@every 99999999999999999999h", "failed to parse duration"),
    ] {
        let error = Schedule::parse(schedule, None).unwrap_err();
        assert!(error.contains(says), "{schedule:?}: {error}");
    }
}
