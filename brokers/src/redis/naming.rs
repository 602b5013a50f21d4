//! How keys and pub/sub channels are named, so that all of one channel's are in one place, and each
//! can be told from every other.
//!
//! On a server, `airwave:{NAME}:head`; its pub/sub knows no databases, so those names have theirs,
//! `airwave:0:{NAME}`.
//!
//! On a cluster a channel belongs to one of 1,024 partitions, and the partition is the hash tag:
//! `airwave:{17}:{NAME}:head`, and `airwave:{17}:{NAME}` in sharded pub/sub. So all channels lie in
//! 1,024 slots that are known beforehand: the map of who has what is short, and commands for many
//! channels of one partition are possible. A subscription is made for each channel all the same,
//! not for the partition, so that a node hears nothing that it does not follow. The number is
//! fixed: it is part of every key.

use std::sync::OnceLock;

use airwave_core::ChannelName;

/// Many more than a cluster has masters, so that they share evenly; few enough that each has many
/// channels.
pub(super) const PARTITIONS: u16 = 1024;

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16384;

/// Which scheme of names is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// One server's database.
    Database(i64),
    /// A cluster.
    Partitions,
}

impl Naming {
    /// A key of the channel's. Its name is in braces, which no name can hold, so what follows
    /// cannot be a part of it.
    pub(super) fn key(self, channel: &ChannelName, what: &str) -> String {
        match self {
            Naming::Database(_) => format!("airwave:{{{channel}}}:{what}"),
            Naming::Partitions => format!("airwave:{{{}}}:{{{channel}}}:{what}", partition(channel)),
        }
    }

    /// Where the epochs are that count for the channel: one place for each of a cluster's
    /// partitions.
    pub(super) fn epochs(self, channel: &ChannelName) -> [String; 2] {
        let place = match self {
            Naming::Database(_) => "airwave".to_owned(),
            Naming::Partitions => format!("airwave:{{{}}}", partition(channel)),
        };
        [format!("{place}:epoch:0"), format!("{place}:epoch:1")]
    }

    /// Where the position is above which channels without events begin, if the clock is behind. In
    /// the same places.
    pub(super) fn floor(self, channel: &ChannelName) -> String {
        match self {
            Naming::Database(_) => "airwave:floor".to_owned(),
            Naming::Partitions => format!("airwave:{{{}}}:floor", partition(channel)),
        }
    }

    /// The channel's name in pub/sub.
    pub(super) fn wire(self, channel: &ChannelName) -> String {
        match self {
            Naming::Database(database) => format!("airwave:{database}:{{{channel}}}"),
            Naming::Partitions => format!("airwave:{{{}}}:{{{channel}}}", partition(channel)),
        }
    }

    /// Which channel a name in pub/sub is of. `None`: of none.
    pub(super) fn channel(self, wire: &str) -> Option<&str> {
        let rest = wire.strip_prefix("airwave:")?.strip_suffix('}')?;
        let before = match self {
            Naming::Database(_) => ":{",
            Naming::Partitions => "}:{",
        };
        rest.split_once(before).map(|(_, name)| name)
    }

    /// Where a node hears itself. Not a channel's: those end with a brace.
    pub(super) fn probe(self, partition: u16, tag: &str) -> String {
        match self {
            Naming::Database(database) => format!("airwave:{database}:probe:{tag}"),
            Naming::Partitions => format!("airwave:{{{partition}}}:probe:{tag}"),
        }
    }

    /// How a script carries an event to subscribers.
    pub(super) fn publish(self) -> &'static str {
        match self {
            Naming::Database(_) => "PUBLISH",
            Naming::Partitions => "SPUBLISH",
        }
    }
}

/// The partition of a channel.
pub(super) fn partition(channel: &ChannelName) -> u16 {
    crc16(channel.as_str().as_bytes()) % PARTITIONS
}

/// The slot of a partition.
pub(super) fn slot(partition: u16) -> u16 {
    static SLOT: OnceLock<Vec<u16>> = OnceLock::new();
    let slots = SLOT.get_or_init(|| (0..PARTITIONS).map(|n| crc16(n.to_string().as_bytes()) % SLOTS).collect());
    slots[usize::from(partition)]
}

/// As the cluster's specification has it: polynomial 0x1021, from zero, nothing reflected.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    #[test]
    fn slots_are_the_clusters() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the specification's own example");
        // What `CLUSTER KEYSLOT` says.
        for (partition, expected) in [(0, 13907), (1, 9842), (17, 12304), (1023, 14911)] {
            assert_eq!(slot(partition), expected, "{partition}");
        }
    }

    /// A change would lose every history.
    #[test]
    fn names_stay_what_they_are() {
        let channel = name("orders/abc");
        assert_eq!(Naming::Database(3).key(&channel, "head"), "airwave:{orders/abc}:head");
        assert_eq!(Naming::Database(3).wire(&channel), "airwave:3:{orders/abc}");
        let partition = partition(&channel);
        assert_eq!(partition, crc16(b"orders/abc") % 1024);
        assert_eq!(
            Naming::Partitions.key(&channel, "head"),
            format!("airwave:{{{partition}}}:{{orders/abc}}:head")
        );
    }

    #[test]
    fn a_name_in_pub_sub_is_told_from_every_other() {
        for naming in [Naming::Database(0), Naming::Database(12), Naming::Partitions] {
            for text in ["a", "a:head", "probe:0", "17:a", "orders/abc"] {
                assert_eq!(naming.channel(&naming.wire(&name(text))), Some(text), "{naming:?}");
            }
            assert_eq!(naming.channel(&naming.probe(17, "0123456789abcdef")), None);
            assert_eq!(naming.channel("other:0:{a}"), None);
        }
    }

    #[test]
    fn partitions_are_spread_over_the_masters_of_a_cluster() {
        for masters in [3, 6, 12] {
            let mut each = vec![0; masters];
            for partition in 0..PARTITIONS {
                each[usize::from(slot(partition)) * masters / usize::from(SLOTS)] += 1;
            }
            let fair = usize::from(PARTITIONS) / masters;
            assert!(each.iter().all(|n| *n > fair / 2 && *n < fair * 2), "{each:?}");
        }
    }
}
