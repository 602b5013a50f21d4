//! The arena: discs that glide, bump and collect sparks. Only this decides what happens; players
//! say where they want to go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How large the arena is.
pub const SIZE: (f32, f32) = (1600.0, 900.0);
/// How often it moves, each second.
pub const TICKS: u32 = 60;
const SPARKS: usize = 36;
const MAX_PLAYERS: usize = 200;
const BOTS: usize = 6;
const PUSH: f32 = 1500.0;
const DRAG: f32 = 2.2;
const SPARK_REACH: f32 = 16.0;

/// Where a player wants to go: each from -1 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steer {
    pub x: f32,
    pub y: f32,
}

/// A player as everybody sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Player {
    pub id: Arc<str>,
    pub name: String,
    pub hue: u16,
    pub x: f32,
    pub y: f32,
    pub vx: f32,
    pub vy: f32,
    pub score: u32,
    #[serde(skip)]
    steer: Steer,
    #[serde(skip)]
    bot: bool,
}

/// Something to collect.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spark {
    pub id: usize,
    pub x: f32,
    pub y: f32,
}

/// Everything there is.
pub struct World {
    /// Who watches by how many connections; all without a name under the empty one.
    watchers: HashMap<String, usize>,
    players: BTreeMap<Arc<str>, Player>,
    sparks: Vec<Spark>,
    ticks: usize,
    newcomers: usize,
    seed: u64,
}

impl World {
    /// Bots and sparks. The same seed, the same world.
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            watchers: HashMap::new(),
            players: BTreeMap::new(),
            sparks: Vec::new(),
            ticks: 0,
            newcomers: 0,
            seed,
        };
        world.sparks = (0..SPARKS).map(|id| world.spark(id)).collect();
        for (n, name) in ["Ampere", "Hertz", "Marconi", "Lamarr", "Tesla", "Maxwell"]
            .into_iter()
            .take(BOTS)
            .enumerate()
        {
            // No client can be called that: ids of clients have no `@`.
            let id: Arc<str> = format!("@{n}").into();
            let mut bot = world.newcomer(id.clone(), name.to_owned());
            bot.bot = true;
            world.players.insert(id, bot);
        }
        world
    }

    /// A player comes, or comes again. False: the arena is full.
    pub fn enter(&mut self, id: &str, name: &str) -> bool {
        if let Some(player) = self.players.get_mut(id) {
            player.name = name.to_owned();
            return true;
        }
        if self.players.len() >= MAX_PLAYERS {
            return false;
        }
        let player = self.newcomer(id.into(), name.to_owned());
        self.players.insert(player.id.clone(), player);
        true
    }

    /// One more connection watches.
    pub fn watch(&mut self, id: &str) {
        *self.watchers.entry(id.to_owned()).or_default() += 1;
    }

    /// One connection less. True: it was the last of this name, whose player is gone with it.
    pub fn unwatch(&mut self, id: &str) -> bool {
        match self.watchers.get_mut(id) {
            Some(more) if *more > 1 => *more -= 1,
            _ => {
                self.watchers.remove(id);
                self.players.remove(id);
                return true;
            }
        }
        false
    }

    /// Whether anybody watches at all.
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Whether this one watches.
    pub fn is_watched_by(&self, id: &str) -> bool {
        self.watchers.contains_key(id)
    }

    /// What a player wants from now on; nothing faster than the rest can be wanted. False: there is
    /// no such player.
    pub fn steer(&mut self, id: &str, wanted: Steer) -> bool {
        let Some(player) = self.players.get_mut(id) else {
            return false;
        };
        let length = wanted.x.hypot(wanted.y);
        player.steer = match length.is_finite() {
            true if length > 1.0 => Steer {
                x: wanted.x / length,
                y: wanted.y / length,
            },
            true => wanted,
            false => Steer::default(),
        };
        true
    }

    /// Moves everything by one tick. Returns the sparks with a new place, and one more in turn, so
    /// that a new watcher soon knows them all.
    pub fn tick(&mut self) -> Vec<Spark> {
        let dt = 1.0 / TICKS as f32;
        for player in self.players.values_mut() {
            if player.bot {
                player.steer = nearest(&self.sparks, player);
            }
            let radius = player.radius();
            for (at, speed, push, size) in [
                (&mut player.x, &mut player.vx, player.steer.x, SIZE.0),
                (&mut player.y, &mut player.vy, player.steer.y, SIZE.1),
            ] {
                *speed += (push * PUSH - *speed * DRAG) * dt;
                *at += *speed * dt;
                if *at < radius || *at > size - radius {
                    *speed *= -0.6;
                    *at = at.clamp(radius, size - radius);
                }
            }
        }
        self.bump();
        self.ticks += 1;
        let mut moved = vec![];
        for at in 0..self.sparks.len() {
            let Spark { id, x, y } = self.sparks[at];
            let reaches = |player: &&mut Player| (player.x - x).hypot(player.y - y) < player.radius() + SPARK_REACH;
            if let Some(player) = self.players.values_mut().find(reaches) {
                player.score += 1;
                self.sparks[at] = self.spark(id);
                moved.push(self.sparks[at]);
            }
        }
        moved.push(self.sparks[self.ticks % SPARKS]);
        moved
    }

    /// Everybody, as they are now.
    pub fn players(&self) -> impl Iterator<Item = &Player> {
        self.players.values()
    }

    /// Discs that overlap push each other away.
    fn bump(&mut self) {
        let mut players: Vec<&mut Player> = self.players.values_mut().collect();
        for a in 1..players.len() {
            let (before, rest) = players.split_at_mut(a);
            let one = &mut *rest[0];
            for other in before {
                let (dx, dy) = (one.x - other.x, one.y - other.y);
                let distance = dx.hypot(dy);
                let overlap = one.radius() + other.radius() - distance;
                if overlap > 0.0 {
                    let (nx, ny) = if distance > 0.0 {
                        (dx / distance, dy / distance)
                    } else {
                        (1.0, 0.0)
                    };
                    for (player, sign) in [(&mut *one, 8.0), (&mut **other, -8.0)] {
                        player.vx += nx * overlap * sign;
                        player.vy += ny * overlap * sign;
                    }
                }
            }
        }
    }

    fn newcomer(&mut self, id: Arc<str>, name: String) -> Player {
        self.newcomers += 1;
        Player {
            id,
            name,
            // The golden angle: neighbours in time are far apart in colour.
            hue: (self.newcomers * 137 % 360) as u16,
            x: SIZE.0 * (0.1 + 0.8 * self.unit()),
            y: SIZE.1 * (0.1 + 0.8 * self.unit()),
            vx: 0.0,
            vy: 0.0,
            score: 0,
            steer: Steer::default(),
            bot: false,
        }
    }

    fn spark(&mut self, id: usize) -> Spark {
        Spark {
            id,
            x: (SIZE.0 * (0.04 + 0.92 * self.unit())).round(),
            y: (SIZE.1 * (0.06 + 0.88 * self.unit())).round(),
        }
    }

    /// From 0 to 1: SplitMix64 (Steele, Lea, Flood, 2014).
    fn unit(&mut self) -> f32 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

impl Player {
    fn radius(&self) -> f32 {
        // The page draws it by the same rule.
        18.0 + (self.score as f32).sqrt().min(20.0)
    }
}

/// A bot goes to what is nearest, at its leisure.
fn nearest(sparks: &[Spark], player: &Player) -> Steer {
    let far = |spark: &&Spark| ((spark.x - player.x).hypot(spark.y - player.y) * 8.0) as u32;
    let Some(spark) = sparks.iter().min_by_key(far) else {
        return Steer::default();
    };
    let (dx, dy) = (spark.x - player.x, spark.y - player.y);
    let length = dx.hypot(dy).max(1.0);
    Steer {
        x: 0.4 * dx / length,
        y: 0.4 * dy / length,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_player_goes_where_it_steers_collects_and_leaves() {
        let mut world = World::new(7);
        assert!(!world.steer("ada", Steer { x: 1.0, y: 0.0 }));
        assert!(world.enter("ada", "Ada"));
        let ada = |world: &World| world.players().find(|player| &*player.id == "ada").cloned();
        let mut collected = 0;
        for _ in 0..60 * TICKS {
            let me = ada(&world).unwrap();
            let wanted = nearest(&world.sparks, &me);
            world.steer("ada", wanted);
            collected += world.tick().len() as u32 - 1;
        }
        let scores: u32 = world.players().map(|player| player.score).sum();
        assert!(
            ada(&world).unwrap().score > 0 && scores == collected,
            "{scores} of {collected}"
        );
        world.watch("ada");
        world.watch("ada");
        assert!(!world.unwatch("ada") && world.is_watched() && ada(&world).is_some());
        assert!(world.unwatch("ada") && !world.is_watched() && ada(&world).is_none());
    }

    #[test]
    fn the_arena_is_full_some_time() {
        let mut world = World::new(7);
        let entered = (0..2 * MAX_PLAYERS).filter(|n| world.enter(&n.to_string(), "x")).count();
        assert_eq!((entered, world.players().count()), (MAX_PLAYERS - BOTS, MAX_PLAYERS));
        assert!(world.enter("0", "again"));
    }

    proptest! {
        #[test]
        fn no_steering_makes_a_spark_leave_the_arena_or_outrun_the_rest(steps in prop::collection::vec((0usize..4, any::<f32>(), any::<f32>()), 1..200)) {
            let mut world = World::new(1);
            for n in 0..4 {
                world.enter(&n.to_string(), "x");
            }
            for (who, x, y) in steps {
                world.steer(&who.to_string(), Steer { x, y });
                world.tick();
                for player in world.players() {
                    let radius = player.radius();
                    prop_assert!((radius..=SIZE.0 - radius).contains(&player.x) && (radius..=SIZE.1 - radius).contains(&player.y), "{player:?}");
                    prop_assert!(player.steer.x.hypot(player.steer.y) < 1.001 && player.vx.hypot(player.vy) < 4000.0, "{player:?}");
                }
            }
        }
    }
}
