// SPDX-License-Identifier: Apache-2.0
//! View of `autoscaling/v2` HorizontalPodAutoscaler.

use std::sync::Arc;

use serde::Deserialize;

use super::LabelSelector;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Autoscaler {
    pub spec: AutoscalerSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoscalerSpec {
    pub scale_target_ref: ObjectRef,
    /// Absent means 1.
    pub min_replicas: Option<u32>,
    pub max_replicas: u32,
    pub metrics: Vec<Metric>,
    pub behavior: Behavior,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
}

/// One metric: the source that its type names is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metric {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub resource: Option<ResourceSource>,
    pub pods: Option<MetricSource>,
    pub object: Option<MetricSource>,
    pub external: Option<MetricSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResourceSource {
    /// `cpu` or `memory`.
    pub name: Arc<str>,
    pub target: Target,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricSource {
    pub metric: MetricName,
    /// Of an object only.
    pub described_object: ObjectRef,
    pub target: Target,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetricName {
    pub name: Arc<str>,
    pub selector: LabelSelector,
}

/// What is wanted; quantities in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Target {
    pub value: Option<Quantity>,
    pub average_value: Option<Quantity>,
    /// Percent of what the pods request.
    pub average_utilization: Option<u32>,
}

/// A Kubernetes quantity (`100m`, `2`, `1Gi`), in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(pub u64);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Behavior {
    pub scale_up: Rules,
    pub scale_down: Rules,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    pub stabilization_window_seconds: Option<u64>,
    /// `Max`, `Min` or `Disabled`.
    pub select_policy: Arc<str>,
    pub policies: Option<Vec<Policy>>,
    pub tolerance: Option<Quantity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// `Pods` or `Percent`.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub value: u32,
    pub period_seconds: u64,
}

// === impl Quantity ===

impl Quantity {
    /// Reads what Kubernetes writes, rounding up to thousandths; `None` when it is no quantity.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(end)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.len() > 18 || whole.len() > 24 {
            return None;
        }
        let digits: u128 = format!("{whole}{part}").parse().ok()?;
        let (times, over): (u128, u128) = match unit {
            "n" => (1, 1_000_000),
            "u" => (1, 1000),
            "m" => (1, 1),
            "" => (1000, 1),
            "k" => (1_000_000, 1),
            "M" => (1_000_000_000, 1),
            "G" => (1_000_000_000_000, 1),
            "T" => (1_000_000_000_000_000, 1),
            "Ki" => (1000 << 10, 1),
            "Mi" => (1000 << 20, 1),
            "Gi" => (1000 << 30, 1),
            "Ti" => (1000 << 40, 1),
            exponent => {
                let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
                (1000u128.checked_mul(10u128.checked_pow(power.min(30))?)?, 1)
            }
        };
        let over = over.checked_mul(10u128.checked_pow(u32::try_from(part.len()).ok()?)?)?;
        let milli = digits.checked_mul(times)?.div_ceil(over);
        u64::try_from(milli).ok().map(Self)
    }
}

/// As Kubernetes writes it: whole numbers plain, others in thousandths.
impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n % 1000 == 0 => write!(f, "{}", n / 1000),
            n => write!(f, "{n}m"),
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let read = Self::parse(&text);
        read.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no quantity")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_written() {
        for (text, milli) in [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            ("1.5k", 1_500_000),
            ("1Gi", 1000 << 30),
            ("1500u", 2),
            ("3e2", 300_000),
            (".1", 100),
        ] {
            assert_eq!(Quantity::parse(text), Some(Quantity(milli)), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1 m", "1.2.3", "99999999999999999999999999"] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
        assert_eq!(Quantity(1500).to_string(), "1500m");
        assert_eq!(Quantity(50_000).to_string(), "50");
    }
}
