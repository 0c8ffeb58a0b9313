// SPDX-License-Identifier: Apache-2.0
//! Envoy's response flags: why an answer is not simply the upstream's. A table; help and docs
//! derive from it.

/// A set of response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

/// One flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(u32);

/// Flag, Envoy's short name, what it means.
pub const FLAGS: &[(Flag, &str, &str)] = &[
    (Flag::UH, "UH", "no healthy upstream instance"),
    (Flag::UF, "UF", "connecting to the upstream failed"),
    (Flag::UC, "UC", "the upstream closed the connection"),
    (Flag::UR, "UR", "the upstream reset the request's stream"),
    (Flag::UT, "UT", "the upstream took too long"),
    (Flag::URX, "URX", "retries or connection attempts were used up"),
    (Flag::UO, "UO", "a circuit breaker or limit was reached"),
    (Flag::UPE, "UPE", "the upstream broke the protocol"),
    (Flag::NR, "NR", "no route matched"),
    (Flag::NC, "NC", "the route's backend does not exist"),
    (Flag::DC, "DC", "the client went away"),
    (Flag::DPE, "DPE", "the client broke the protocol"),
    (Flag::SI, "SI", "nothing was sent for too long"),
    (Flag::UAEX, "UAEX", "the request was not admitted"),
    (Flag::DI, "DI", "the route's fault policy delayed the request"),
    (Flag::FI, "FI", "the route's fault policy answered instead of the upstream"),
    (Flag::RL, "RL", "beyond a rate limit"),
    (Flag::OM, "OM", "this proxy had no memory to spare"),
    (Flag::RFCF, "RFCF", "answered with what a gateway had stored"),
    (Flag::DT, "DT", "it had lasted for as long as it may"),
];

// === impl Flag ===

impl Flag {
    pub const UH: Self = Self(1);
    pub const UF: Self = Self(1 << 1);
    pub const UC: Self = Self(1 << 2);
    pub const UT: Self = Self(1 << 3);
    pub const URX: Self = Self(1 << 4);
    pub const UO: Self = Self(1 << 5);
    pub const UPE: Self = Self(1 << 6);
    pub const NR: Self = Self(1 << 7);
    pub const NC: Self = Self(1 << 8);
    pub const DC: Self = Self(1 << 9);
    pub const DPE: Self = Self(1 << 10);
    pub const SI: Self = Self(1 << 11);
    pub const UAEX: Self = Self(1 << 12);
    pub const DI: Self = Self(1 << 13);
    pub const FI: Self = Self(1 << 14);
    pub const RL: Self = Self(1 << 15);
    pub const OM: Self = Self(1 << 16);
    pub const RFCF: Self = Self(1 << 17);
    pub const DT: Self = Self(1 << 18);
    pub const UR: Self = Self(1 << 19);
}

// === impl Flags ===

impl Flags {
    pub fn add(&mut self, flag: Flag) {
        self.0 |= flag.0;
    }

    pub fn add_all(&mut self, flags: Self) {
        self.0 |= flags.0;
    }

    pub fn has(self, flag: Flag) -> bool {
        self.0 & flag.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether something went wrong: that an answer was stored is no failure.
    pub fn tells_failure(self) -> bool {
        self.0 & !Flag::RFCF.0 != 0
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        Self(flag.0)
    }
}

/// `UF,URX`, or `-` when there is none.
impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut first = true;
        for (_, name, _) in FLAGS.iter().filter(|(flag, _, _)| self.has(*flag)) {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.add(Flag::URX);
        flags.add(Flag::UF);
        assert_eq!(flags.to_string(), "UF,URX");
        let all: u32 = FLAGS.iter().map(|(f, _, _)| f.0).sum();
        assert_eq!(all.count_ones() as usize, FLAGS.len(), "every flag has its own bit");
    }
}
