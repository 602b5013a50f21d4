//! The scripts that the server runs, and what is known of each before it is called.

/// A script of ours, with what its first line says and what several need: the epochs, and what is
/// too old.
macro_rules! script {
    ($first:literal, $file:literal) => {
        concat!(
            $first,
            "\n",
            include_str!("epoch.lua"),
            include_str!("age.lua"),
            include_str!($file)
        )
    };
}

const APPEND: &str = script!("#!lua", "append.lua");
const READ: &str = script!("#!lua flags=allow-oom", "read.lua");
const FOUND: &str = script!("#!lua", "found.lua");
const FLOOR: &str = script!("#!lua", "floor.lua");
const REMEMBER: &str = script!("#!lua", "remember.lua");
const MEMBERS: &str = include_str!("members.lua");
const LEASES: &str = include_str!("leases.lua");
const ENTER: &str = include_str!("enter.lua");

/// The texts of all scripts, each at its [`Script::number`].
pub(super) const TEXTS: [&str; 8] = [APPEND, READ, FOUND, FLOOR, REMEMBER, MEMBERS, LEASES, ENTER];

/// A script, and how it is called.
#[derive(Clone, Copy)]
pub(super) struct Script {
    /// Its place in [`TEXTS`].
    pub(super) number: usize,
    /// Whether its answer may be a page of history, which has a connection of its own.
    pub(super) pages: bool,
    /// Whether it publishes, so that feeds wait for what it says.
    pub(super) tells: bool,
    /// Whether it can be called with [`Keys::Own`]. It answers with nothing then if those are not
    /// enough.
    pub(super) own: bool,
}

impl Script {
    const fn new(number: usize) -> Script {
        Script {
            number,
            pages: false,
            tells: false,
            own: false,
        }
    }

    pub(super) fn text(self) -> &'static str {
        TEXTS[self.number]
    }

    pub(super) const APPEND: Script = Script {
        tells: true,
        own: true,
        ..Script::new(0)
    };

    pub(super) const READ: Script = Script {
        own: true,
        ..Script::new(1)
    };

    pub(super) const FOUND: Script = Script::new(2);
    pub(super) const FLOOR: Script = Script::new(3);
    pub(super) const REMEMBER: Script = Script::new(4);

    pub(super) const MEMBERS: Script = Script {
        tells: true,
        ..Script::new(5)
    };

    pub(super) const LEASES: Script = Script::new(6);
    pub(super) const ENTER: Script = Script::new(7);
}

/// Which keys a call names. While a slot moves, a cluster refuses a call (`TRYAGAIN`) of whose keys
/// only some are where it is called. The epochs and the floor belong to a partition: one of them is
/// mostly missing, and they may have moved before the channel has, or after it. A channel with
/// events does without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    All,
    /// The channel's own.
    Own,
}

impl Keys {
    pub(super) fn others(self) -> Keys {
        match self {
            Keys::All => Keys::Own,
            Keys::Own => Keys::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_at_its_number() {
        for (script, text) in [
            (Script::APPEND, APPEND),
            (Script::READ, READ),
            (Script::FOUND, FOUND),
            (Script::FLOOR, FLOOR),
            (Script::REMEMBER, REMEMBER),
            (Script::MEMBERS, MEMBERS),
            (Script::LEASES, LEASES),
            (Script::ENTER, ENTER),
        ] {
            assert_eq!(script.text(), text);
        }
    }

    /// A full server must stay as full as it is.
    #[test]
    fn no_script_that_works_on_a_full_server_adds_a_key() {
        let unbounded = TEXTS
            .into_iter()
            .filter(|script| script.lines().next().is_some_and(|line| line.contains("allow-oom")));
        let mut counted = 0;
        for script in unbounded {
            counted += 1;
            // What READ shares with scripts that make an epoch is not called with `true` there.
            let own = script.split("-- Reads").nth(1).unwrap();
            // A head that is there is no new key.
            let own = own.replace("redis.call('HSET', KEYS[1],", "");
            for adds in ["'SET'", "'HSET'", "'SADD'", "'XADD'", "'RPUSH'", "true)"] {
                assert!(!own.contains(adds), "{adds} in {own}");
            }
            assert_eq!(own.matches("'ZADD', key, 'XX'").count(), own.matches("'ZADD'").count());
        }
        assert_eq!(counted, 2, "the scripts that read, and that read leases");
    }
}
