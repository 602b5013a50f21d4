// The arena as it is seen: the newest state of each player, carried on by its speed until the next
// one comes.

/** A player whose state has not come for so long is gone. */
const SILENT_MS = 1500;
const TRAIL = 14;

export class Arena {
  size = [1600, 900];
  players = new Map();
  sparks = new Map();
  /** Bursts where a spark was collected. */
  #bursts = [];
  /** States that came within the last second. */
  #heard = [];
  /** Where the view is. */
  #camera;

  /** Follows a channel. */
  follow(channel) {
    channel.on("player", (state) => {
      const now = performance.now();
      this.#heard.push(now);
      const known = this.players.get(state.id);
      this.players.set(state.id, { ...state, at: now, shown: known?.shown ?? { x: state.x, y: state.y }, trail: known?.trail ?? [] });
    });
    channel.on("spark", (spark) => this.put(spark));
    channel.on("left", ({ id }) => this.players.delete(id));
    // Nothing is lost that the next sixtieth of a second would not bring.
    channel.on("gap", () => {});
  }

  put(spark) {
    const before = this.sparks.get(spark.id);
    if (before && (before.x !== spark.x || before.y !== spark.y)) this.#bursts.push({ ...before, at: performance.now() });
    this.sparks.set(spark.id, spark);
  }

  /** States heard in the last second. */
  get rate() {
    const since = performance.now() - 1000;
    while (this.#heard[0] < since) this.#heard.shift();
    return this.#heard.length;
  }

  get ranking() {
    return [...this.players.values()].sort((a, b) => b.score - a.score);
  }

  /**
   * Draws the arena. `centre` is the player that stays in view where not everything fits. Without
   * it, the leading player stays in view.
   */
  draw(context, width, height, centre) {
    const now = performance.now();
    const [w, h] = this.size;
    const scale = Math.max(width / w, height / h);
    const wanted = (this.players.get(centre) ?? this.ranking[0])?.shown ?? { x: w / 2, y: h / 2 };
    const me = (this.#camera ??= { ...wanted });
    // Gently, because another may lead in a moment.
    me.x += (wanted.x - me.x) * 0.12;
    me.y += (wanted.y - me.y) * 0.12;
    const view = (at, window, size) => Math.min(Math.max(window / 2 - at * scale, window - size * scale), 0);
    const [left, top] = [view(me.x, width, w), view(me.y, height, h)];
    this.origin = { left, top, scale };

    context.fillStyle = "#0b1020";
    context.fillRect(0, 0, width, height);
    context.save();
    context.translate(left, top);
    context.scale(scale, scale);
    context.strokeStyle = "#1a2440";
    context.lineWidth = 1 / scale;
    context.beginPath();
    for (let x = 100; x < w; x += 100) context.moveTo(x, 0), context.lineTo(x, h);
    for (let y = 100; y < h; y += 100) context.moveTo(0, y), context.lineTo(w, y);
    context.stroke();

    for (const { x, y, id } of this.sparks.values()) {
      const glow = 1 + 0.18 * Math.sin(now / 300 + id * 2);
      disc(context, x, y, 13 * glow, "rgb(255 209 102 / 14%)");
      disc(context, x, y, 4.5 * glow, "#ffd166");
    }
    this.#bursts = this.#bursts.filter(({ at }) => now - at < 450);
    for (const { x, y, at } of this.#bursts) {
      const age = (now - at) / 450;
      context.strokeStyle = `rgb(255 209 102 / ${(1 - age) * 80}%)`;
      context.lineWidth = 3;
      context.beginPath();
      context.arc(x, y, 8 + age * 34, 0, 7);
      context.stroke();
    }
    for (const player of this.players.values()) {
      const silent = now - player.at;
      if (silent > SILENT_MS) {
        this.players.delete(player.id);
        continue;
      }
      this.#move(player, silent);
      this.#disc(context, player, player.id === centre);
    }
    context.restore();
  }

  #move(player, silent) {
    // A tenth of a second ahead at most: further it would be guesswork.
    const ahead = Math.min(silent, 100) / 1000;
    const [x, y] = [player.x + player.vx * ahead, player.y + player.vy * ahead];
    const far = Math.hypot(x - player.shown.x, y - player.shown.y) > 200;
    const pull = far ? 1 : 0.45;
    player.shown.x += (x - player.shown.x) * pull;
    player.shown.y += (y - player.shown.y) * pull;
    player.trail.push({ ...player.shown });
    if (player.trail.length > TRAIL) player.trail.shift();
  }

  #disc(context, { shown, trail, hue, score, name }, mine) {
    // The server bumps by the same rule.
    const radius = 18 + Math.min(Math.sqrt(score), 20);
    trail.forEach(({ x, y }, n) => disc(context, x, y, (radius * n) / TRAIL, `hsl(${hue} 80% 60% / 5%)`));
    disc(context, shown.x, shown.y, radius + 7, `hsl(${hue} 90% 60% / 18%)`);
    disc(context, shown.x, shown.y, radius, `hsl(${hue} 75% 58%)`);
    disc(context, shown.x - radius / 3, shown.y - radius / 3, radius / 3.2, "rgb(255 255 255 / 35%)");
    if (mine) {
      context.strokeStyle = "#fff";
      context.lineWidth = 3;
      context.beginPath();
      context.arc(shown.x, shown.y, radius, 0, 7);
      context.stroke();
    }
    context.fillStyle = "#dfe6f5";
    context.font = "600 17px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(name, shown.x, shown.y + radius + 22);
  }
}

function disc(context, x, y, radius, fill) {
  context.fillStyle = fill;
  context.beginPath();
  context.arc(x, y, Math.max(radius, 0), 0, 7);
  context.fill();
}
