// SPDX-License-Identifier: Apache-2.0
//! Cron schedules as Kubernetes reads them: five fields, `@daily` and its like, `@every 1h30m`,
//! in a time zone. Called by the CronJob's rules and its controller. Pure: the zones are those
//! that weft was built with, so the same schedule means the same on every machine.

use std::sync::OnceLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, Zoned};

/// Days that a schedule is searched for before it counts as one that never comes.
const DAYS_MAX: u32 = 5 * 366;

/// A schedule that can be asked when it comes next.
#[derive(Clone, Debug)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    Every(SignedDuration),
    Fields(Fields),
}

/// One bit per value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both a day and a weekday are asked for: either will do.
    either_day: bool,
}

struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    words: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", least: 0, most: 59, words: &[] };
const HOUR: Field = Field { name: "hour", least: 0, most: 23, words: &[] };
const DAY: Field = Field { name: "day of month", least: 1, most: 31, words: &[] };
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Field = Field {
    name: "day of week",
    least: 0,
    most: 6,
    words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

/// The time zone of a name such as `Europe/Berlin`.
///
/// # Errors
/// When there is no such zone.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    static ZONES: OnceLock<TimeZoneDatabase> = OnceLock::new();
    if name.is_empty() || name.eq_ignore_ascii_case("local") {
        return Err("a time zone is named like Europe/Berlin or Etc/UTC".to_owned());
    }
    let zones = ZONES.get_or_init(TimeZoneDatabase::bundled);
    zones.get(name).map_err(|_| format!("unknown time zone {name}"))
}

// === impl Schedule ===

impl Schedule {
    /// Reads a schedule; without a zone it is in UTC.
    ///
    /// # Errors
    /// What of it cannot be read.
    pub fn parse(text: &str, time_zone: Option<&str>) -> Result<Self, String> {
        let zone = time_zone.map_or(Ok(TimeZone::UTC), zone)?;
        let text = text.trim();
        let when = match text.strip_prefix('@') {
            Some(word) => described(word)?,
            None => When::Fields(Fields::parse(text)?),
        };
        Ok(Self { when, zone })
    }

    /// The first time after a moment; `None` when it never comes.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Every(step) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*step).ok()
            }
            When::Fields(fields) => fields.next(&after.to_zoned(self.zone.clone())),
        }
    }

    /// The last time after `since` and not after `now`.
    pub fn latest(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        // Looked for in the near past first, so that a long pause costs little.
        for seconds in [120, 2 * 3600, 3 * 86_400, 63 * 86_400, i64::MAX] {
            let near = now.as_second().checked_sub(seconds).unwrap_or(i64::MIN);
            let near = Timestamp::from_second(near).unwrap_or(since);
            let (from, all) = if near <= since { (since, true) } else { (near, false) };
            let mut last = None;
            let mut at = self.next(from);
            while let Some(time) = at.filter(|t| *t <= now) {
                last = Some(time);
                at = self.next(time);
            }
            if last.is_some() || all {
                return last;
            }
        }
        None
    }
}

fn described(word: &str) -> Result<When, String> {
    if let Some(text) = word.strip_prefix("every ") {
        return every(text).map(When::Every);
    }
    let text = match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => return Err(format!("unrecognized descriptor: @{word}")),
    };
    Fields::parse(text).map(When::Fields)
}

/// `1h30m`, at least a second.
fn every(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("failed to parse duration @every {text}");
    let (mut total, mut number) = (0u64, String::new());
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(wrong()),
        };
        let n: u64 = number.parse().map_err(|_| wrong())?;
        number.clear();
        total = n.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or_else(wrong)?;
    }
    let seconds = i64::try_from(total).map_err(|_| wrong())?;
    let sane = number.is_empty() && (1..=i64::from(DAYS_MAX) * 86_400).contains(&seconds);
    if sane { Ok(SignedDuration::from_secs(seconds)) } else { Err(wrong()) }
}

// === impl Fields ===

impl Fields {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", parts.len()));
        };
        let any = |text: &str| text.starts_with(['*', '?']);
        Ok(Self {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays: WEEKDAY.parse(weekday)?,
            either_day: !any(day) && !any(weekday),
        })
    }

    fn next(&self, after: &Zoned) -> Option<Timestamp> {
        let minute = after.timestamp().as_second().div_euclid(60) + 1;
        let mut at = zoned(minute.checked_mul(60)?, after)?;
        let mut days = 0;
        loop {
            if !self.day(&at) {
                days += 1;
                if days > DAYS_MAX {
                    return None;
                }
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(self.hours, at.hour()) {
                // To the next full hour, as the clock on the wall shows it.
                let left = 60 - i64::from(at.minute());
                at = zoned(at.timestamp().as_second() + left * 60, after)?;
            } else if !has(self.minutes, at.minute()) {
                at = zoned(at.timestamp().as_second() + 60, after)?;
            } else {
                return Some(at.timestamp());
            }
        }
    }

    fn day(&self, at: &Zoned) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        let fits = if self.either_day { day || weekday } else { day && weekday };
        fits && has(self.months, at.month())
    }
}

fn zoned(second: i64, like: &Zoned) -> Option<Zoned> {
    Some(Timestamp::from_second(second).ok()?.to_zoned(like.time_zone().clone()))
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|v| bits >> v & 1 == 1)
}

// === impl Field ===

impl Field {
    fn parse(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |bits, part| Ok(bits | self.part(part)?))
    }

    /// `*`, `5`, `1-5`, each with `/step`.
    fn part(&self, text: &str) -> Result<u64, String> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(self.number(step)?)),
            None => (text, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.least, self.most),
            Some((from, to)) => (self.value(from)?, self.value(to)?),
            // `5/15` begins at 5 and goes on to the end.
            None => {
                let from = self.value(range)?;
                (from, if step.is_some() { self.most } else { from })
            }
        };
        let step = step.unwrap_or(1);
        if from < self.least || to > self.most || from > to || step == 0 {
            let (name, least, most) = (self.name, self.least, self.most);
            return Err(format!("{name} {text:?} is not within {least} and {most}"));
        }
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        Ok((from..=to).step_by(step).fold(0, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let word = text.to_ascii_lowercase();
        match self.words.iter().position(|w| *w == word) {
            Some(at) => Ok(self.least + u32::try_from(at).unwrap_or(0)),
            None => self.number(text),
        }
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.ok_or_else(|| format!("{} {text:?} is no number", self.name))
    }
}

#[cfg(test)]
mod tests;
