// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	// briefly is how long a wire's turn is waited for. Whoever has it works on the
	// wire; a Request that hangs must not hold up the repair of the others.
	briefly = 20 * time.Millisecond
	// reconcileFor bounds one Reconcile: no Request hangs longer than that.
	reconcileFor = 30 * time.Second
	// restFor is how many times as long as it has worked a round of looks rests: so it
	// uses a fifth of a processor at most.
	restFor = 4
	// leastRest is how long it rests at least, since to wake up is work, too: more than
	// to look at a wire.
	leastRest = 5 * time.Millisecond
	// pruneEvery is how many rounds of repair there are to one of Prune, which looks
	// at every namespace of the node.
	pruneEvery = 15
)

// Reconcile makes the kernel have again what every wire needs, whatever somebody
// else has deleted or changed, and says in the log what it found. Wires on which
// somebody works come last.
func (f *Forwarder) Reconcile(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reconcileFor)
	defer cancel()
	f.followUplink()
	for ids := f.wires.IDs(); len(ids) > 0 && ctx.Err() == nil; {
		ids = slices.DeleteFunc(ids, func(id string) bool { return f.repair(ctx, id) })
	}
}

// KeepReconciled reconciles at the given interval until ctx ends, and prunes now and
// then. What somebody damages is repaired within the interval.
func (f *Forwarder) KeepReconciled(ctx context.Context, every time.Duration) {
	for round := 1; ; round++ {
		f.followUplink()
		begun := time.Now()
		if !f.lookAtAll(ctx, every) {
			return
		}
		// Of what was seen some is as old as this round. The next one takes as long.
		if !pause(ctx, max(every-2*time.Since(begun), every/10)) {
			return
		}
		if round%pruneEvery == 0 {
			f.Prune(ctx)
		}
	}
}

// lookAtAll looks at all wires and repairs those that are not as they should be. Most
// are, and it costs little to see that of many at once. It reports whether ctx has not
// ended.
func (f *Forwarder) lookAtAll(ctx context.Context, every time.Duration) bool {
	intact := f.config.Kernel.Look()
	ids := f.wires.IDs()
	var owed time.Duration // of rest
	for _, id := range ids {
		begun := time.Now()
		f.look(ctx, id, intact)
		// A thousand wires are no burst. One that hangs does not keep others waiting.
		owed += min(restFor*time.Since(begun), every/time.Duration(len(ids)))
		if owed < leastRest {
			continue
		}
		if !pause(ctx, owed) {
			return false
		}
		owed = 0
	}
	return ctx.Err() == nil
}

// look repairs a wire if it is not intact. Its turn is not kept while it is looked at.
func (f *Forwarder) look(ctx context.Context, id string, intact func(context.Context, plan.Wire) bool) {
	var desired plan.Wire
	f.onTurn(ctx, id, func(t *conn.Turn[wire]) {
		if f.mayRepair(t) {
			desired = t.Record.desired
		}
	})
	switch {
	case desired.Kind == "":
	case intact(ctx, desired):
		f.damaged.Forget(id)
	default:
		f.repair(ctx, id)
	}
}

// followUplink notices that the underlay's MTU has changed; wires follow with their
// next refresh. While it has none, as when a link is down, the last one holds.
func (f *Forwarder) followUplink() {
	if f.config.TunnelIP.IsValid() {
		_, _ = f.readUplinkMTU()
	}
}

// pause reports whether ctx has not ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// onTurn runs do in the turn of a wire unless somebody else has it. It reports
// whether it did.
func (f *Forwarder) onTurn(ctx context.Context, id string, do func(t *conn.Turn[wire])) (done bool) {
	waiting, cancel := context.WithTimeout(ctx, briefly)
	defer cancel()
	_ = f.wires.Do(waiting, id, func(t *conn.Turn[wire]) error {
		done = true
		do(t)
		return nil
	})
	return done
}

// mayRepair reports whether it is known what the kernel should have of a wire, and nothing
// is left on purpose.
//
// Of an adopted wire nothing is known but where its links stand. One that is damaged
// is made whole by the next refresh, or removed when none comes.
func (f *Forwarder) mayRepair(t *conn.Turn[wire]) bool {
	return t.Record != nil && !t.Record.adopted && t.Record.desired.Kind != "" && !time.Now().Before(t.Record.lingers)
}

// repair compares one wire with the kernel. It reports whether it could: somebody
// else may work on it.
func (f *Forwarder) repair(ctx context.Context, id string) bool {
	return f.onTurn(ctx, id, func(t *conn.Turn[wire]) {
		if !f.mayRepair(t) {
			return
		}
		steps, err := f.config.Kernel.Apply(ctx, t.Record.desired)
		switch {
		case err != nil && ctx.Err() != nil:
		case err != nil:
			f.log.Log(ctx, f.damaged.Level(slog.LevelWarn, id, nserr.From(err).Reason.Code), "wire not repaired", "connection", id, "error", err)
		case len(steps) > 0:
			found := plan.Script(steps, func(key string) string { return key })
			f.log.Log(ctx, f.damaged.Level(slog.LevelWarn, id, found), "wire repaired", "connection", id, "steps", found)
		default:
			f.damaged.Forget(id)
		}
	})
}

// Prune removes links that bear this forwarder's name and that no wire owns: what a
// removal has missed, or somebody has made for whatever purpose. A wire on which
// somebody works is left for the next time.
func (f *Forwarder) Prune(ctx context.Context) {
	found, err := f.config.Kernel.FindLinks(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.log.Log(ctx, f.damaged.Level(slog.LevelWarn, "prune", nserr.From(err).Reason.Code), "links not looked for", "error", err)
		}
		return
	}
	defer f.releaseSpaces(found)
	f.damaged.Forget("prune")
	byID := make(map[string][]plan.Found)
	for _, link := range found {
		byID[link.Tag.ID] = append(byID[link.Tag.ID], link)
	}
	for id, links := range byID {
		f.onTurn(ctx, id, func(t *conn.Turn[wire]) { f.prune(ctx, t, links) })
	}
}

// prune removes of the links that bear a wire's id those that are none of its. What
// an earlier life has made may belong to a client that has yet to refresh it: it is
// adopted like all that Adopt has found.
func (f *Forwarder) prune(ctx context.Context, t *conn.Turn[wire], links []plan.Found) {
	var desired plan.Wire
	switch grace := f.graceEnds.Load(); {
	case t.Record != nil && (t.Record.adopted || time.Now().Before(t.Record.lingers)):
		return
	case t.Record != nil:
		desired = t.Record.desired
	case grace != nil && time.Now().Before(*grace):
		f.takeOn(ctx, t, plan.Wires(links)[0], *grace)
		return
	}
	for _, rest := range plan.Wires(strays(links, desired)) {
		err := f.config.Kernel.Remove(ctx, rest)
		switch {
		case err == nil:
			for _, end := range rest.Ends {
				f.log.Warn("link without a wire removed", "connection", t.ID, "interface", end.Name, "tag", rest.Tag(end.Side).String())
			}
		case t.Record == nil:
			f.keepRest(t, &wire{desired: rest}, err)
		default:
			f.log.Log(ctx, f.damaged.Level(slog.LevelWarn, t.ID+" stray", nserr.From(err).Reason.Code), "link without a wire not removed", "connection", t.ID, "error", err)
		}
	}
}

// strays are the links that do not stand where a wire has its ends.
func strays(links []plan.Found, desired plan.Wire) (out []plan.Found) {
	for _, l := range links {
		if !slices.ContainsFunc(desired.Ends, func(e plan.End) bool { return e.NetNS == l.NetNS && e.Side == l.Tag.Side }) {
			out = append(out, l)
		}
	}
	return out
}
