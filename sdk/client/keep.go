// SPDX-License-Identifier: Apache-2.0

package client

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// open makes the wire, or fails. It ends with either context: ctx is the
// caller's, life that of the wire, which Close ends.
func (w *Wire) open(ctx, life context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	if err := w.first(ctx); err != nil {
		return err
	}
	if life.Err() != nil {
		return nserr.Stopping.Errorf("the client was closed while it connected")
	}
	return nil
}

// first makes the wire, or fails.
func (w *Wire) first(ctx context.Context) error {
	w.due = conn.Decision{Do: conn.Refresh}
	if w.client.named && w.takeOver(ctx) {
		w.due.Do = conn.Either // the endpoint may have gone meanwhile
	}
	var last error
	for {
		err := w.attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil && last != nil {
			return last // which says more than that there was no time for another attempt
		}
		if !w.retry || !nserr.From(err).Reason.Passes() {
			return err
		}
		last = err
		w.complain("not connected yet, trying on", err)
		if w.await(ctx) != nil {
			return err
		}
	}
}

// run keeps the wire until ctx ends: it waits for the time or the event that
// conn.Decide named, acts, and decides again.
func (w *Wire) run(ctx context.Context) {
	defer close(w.done)
	unsubscribe := w.client.manager.Subscribe(w.id, w.hear)
	defer unsubscribe()
	defer w.prober.end()
	defer w.client.lookout.leave(w.service, w.inbox)
	for w.await(ctx) == nil {
		if err := w.attempt(ctx); err != nil && ctx.Err() == nil {
			w.complain("wire not refreshed, trying on", err)
		}
	}
}

// complain logs an attempt that has failed: the first, the first for another reason,
// and of all the others ever fewer.
func (w *Wire) complain(what string, err error) {
	tries := w.tries()
	level := max(reminder(tries), w.complaints.Level(slog.LevelWarn, "", nserr.From(err).Reason.Code))
	w.complained = w.complained || level == slog.LevelWarn
	w.client.log.Log(context.Background(), level, what, "connection", w.id, "attempt", tries, "error", err)
}

// await waits until it is time for what is due. Events change what that is.
func (w *Wire) await(ctx context.Context) error {
	_, _, err := w.Status()
	if wish, ok := waitsFor(err); ok {
		wish.endpoint = w.pinned
		w.client.lookout.wait(w.service, w.inbox, wish, w.asked)
	} else {
		w.client.lookout.leave(w.service, w.inbox)
	}
	for {
		for _, e := range w.inbox.take() {
			w.note(e)
		}
		wait := time.Until(w.due.At)
		if wait <= 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-w.inbox.wake:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// note has an event change what is due.
func (w *Wire) note(e conn.Event) {
	if e == conn.PathDown || e == conn.PeerLost {
		w.prober.suspect()
	}
	if e == conn.DataLost || e == conn.DataNone {
		w.notePackets(e)
	}
	w.due = w.decide(e)
	if e == conn.DataBack {
		w.notePackets(e)
	}
	if why, ok := grounds[e]; ok {
		w.why = why
		w.setDown()
	}
}

// grounds are the events that say that a wire is broken, and how they do.
var grounds = map[conn.Event]string{
	conn.PathDown:      "a hop said that the path is down",
	conn.PeerLost:      "the manager was not heard of",
	conn.DataLost:      "no packets came back",
	conn.AskedReselect: "a hop asked for another path",
}

// attempt does what is due, and decides what is due then.
func (w *Wire) attempt(ctx context.Context) error {
	do := w.due.Do
	if w.due.Urged > 0 {
		w.urged, w.urgedAt = w.due.Urged, time.Now()
	}
	if w.due.News() {
		w.stale = w.tries()
	}
	w.givenUp = w.givenUp || w.due.GivesUp
	w.due = conn.Decision{}
	if do == conn.Anew && w.isUp() {
		w.expire()
	}
	w.asked = time.Now()
	moved, err := w.act(ctx, do)
	switch {
	case err == nil:
		w.stale, w.givenUp, w.hint = 0, false, 0
		if moved {
			w.prober.end() // what it has said is of the old path
			w.inbox.drop(conn.DataLost, conn.DataBack)
			w.prober.follow(w.Addrs(), w.PeerAddrs())
			w.dry.renewed = !w.dry.since.IsZero()
		} else {
			w.prober.follow(w.Addrs(), w.PeerAddrs())
			w.prober.recheck()
			w.inbox.drop(conn.DataLost) // if it is still so the prober says it again
		}
		w.due = w.decide(conn.Established)
	case ctx.Err() != nil: // nobody wants it any more
	case errors.Is(err, errDataLost): // nothing has failed, another path is due
		w.inbox.drop(conn.DataLost)
		w.note(conn.DataLost)
		return nil
	default:
		w.why = err.Error()
		w.count(err)
		w.hint = nserr.From(err).Retry
		event := failure(err)
		if w.hasEnded() {
			w.expire() // which says why
			err = nil
		}
		w.due = w.decide(event)
	}
	return err
}

// failure is the event that an error of a Request is.
func failure(err error) conn.Event {
	switch nserr.From(err).Reason {
	case nserr.EndpointGone, nserr.UnknownEndpoint:
		return conn.EndpointLost
	}
	return conn.Failed
}

// hear translates what the manager tells about the connection. It runs in the
// peer's goroutine and must not block.
func (w *Wire) hear(e peer.Event) {
	if e.Kind == peer.Restored {
		w.inbox.post(conn.PeerFound)
	}
	switch {
	case e.Kind == peer.Lost:
		w.inbox.post(conn.PeerLost)
	case e.Conn == nil: // a manager that has restarted knows nothing
		w.inbox.post(conn.PeerLost)
		w.inbox.post(conn.PeerFound)
	case e.Kind == peer.Down && e.Conn.GetPath() == nil: // from before the wire listened, and nothing since
		w.inbox.post(conn.PathDown)
	case !w.concerned(e.Conn):
		w.client.log.Debug("event of another path, or an old one, is ignored", "connection", w.id)
	case e.Kind == peer.Down || e.Conn.GetState() == networkservice.State_DOWN:
		w.inbox.post(conn.PathDown)
	case e.Conn.GetState() == networkservice.State_REFRESH_REQUESTED, e.Conn.GetState() == networkservice.State_RESELECT_REQUESTED && w.echoes():
		w.inbox.post(conn.AskedRefresh)
	case e.Conn.GetState() == networkservice.State_RESELECT_REQUESTED:
		w.inbox.post(conn.AskedReselect)
	default:
		w.inbox.drop(conn.PathDown, conn.PeerLost) // it is up again
	}
}

// echoWithin is how long after a Request for another path a hop that asks for one may be
// repeating the Request's own state.
const echoWithin = time.Second

// echoes reports whether the wish for another path is likely to be the wire's own.
// Endpoints and forwarders of the reference tell watchers the state that a Request had:
// who took that for a wish would ask without end. The same path is asked again, which
// sets the state right; a hop whose wish it is has it still.
func (w *Wire) echoes() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.wished) < echoWithin
}

func (w *Wire) noteWish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wished = time.Now()
}

func (w *Wire) decide(e conn.Event) conn.Decision {
	now, chance := time.Now(), rand.Float64()
	if e == conn.Established { // what comes next is a refresh
		chance = w.client.spread.next()
	}
	return conn.Decide(w.state(), e, w.prober.data(now), now, chance)
}

func (w *Wire) state() conn.State {
	watched := w.client.lookout.watching(w.service, w.inbox, w.asked)
	w.mu.Lock()
	defer w.mu.Unlock()
	return conn.State{
		Expires: w.ends, Attempts: w.attempts, Stale: w.stale, Up: w.up, Over: w.over, GivenUp: w.givenUp, Dry: w.dry.paths,
		Hint: w.hint, Due: w.due, Urged: w.urged, UrgedAt: w.urgedAt, Watched: watched,
	}
}

// act does what conn.Decide has decided. moved is set when the path may be
// another one now.
func (w *Wire) act(ctx context.Context, do conn.Action) (moved bool, err error) {
	if do == conn.Refresh || do == conn.Either {
		err = w.refresh(ctx)
		if err == nil || do == conn.Refresh || ctx.Err() != nil {
			return false, err
		}
		w.why = err.Error()
	}
	w.inbox.drop(conn.PathDown, conn.PeerLost, conn.AskedRefresh, conn.AskedReselect) // to be answered now
	return true, w.request(ctx, true)
}

// refresh asks for the same path. If packets stop meanwhile the Request is given
// up, with errDataLost: it could hang for as long as its time limit.
func (w *Wire) refresh(ctx context.Context) error {
	ctx, release := w.inbox.guard(ctx)
	defer release()
	w.inbox.drop(conn.PathDown, conn.PeerLost, conn.AskedRefresh) // to be answered now
	err := w.request(ctx, false)
	if err != nil && context.Cause(ctx) == errDataLost {
		return errDataLost
	}
	return err
}

// request sends the Request for the wire as it is now and keeps the answer.
func (w *Wire) request(ctx context.Context, reselect bool) error {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.turn }()
	ctx, cancel := context.WithTimeout(ctx, w.client.config.RequestTimeout)
	defer cancel()

	asked := proto.Clone(w.Connection()).(*networkservice.Connection)
	w.sayAttempts(asked)
	if reselect {
		asked.Mechanism = nil
		asked.NetworkServiceEndpointName = w.pinned
		asked.State = networkservice.State_RESELECT_REQUESTED
		defer w.noteWish() // the answer comes on another stream than its echo
		w.noteWish()
	}
	if asked.Context != nil {
		asked.Context.MTU = w.mtu // what the path has taken so far says nothing of what it takes now
	}
	var at grpcpeer.Peer
	// While there is no wire nobody tells when the manager is back. To wait for that is
	// all that the next attempt can do.
	patient := !w.isUp() && w.tries() > 0
	got, err := hop.Ask(rpc.WithFiles(ctx, w.netns.file), w.client.manager,
		&networkservice.NetworkServiceRequest{Connection: asked, MechanismPreferences: w.prefs}, grpc.Peer(&at), grpc.WaitForReady(patient))
	if err != nil {
		if errors.Is(err, nserr.NameTaken) {
			w.preferName("")
		}
		return err
	}
	rpc.DiscardReplyFile(&at, got.GetMechanism().GetParameters()["inodeURL"]) // our own, sent back by some
	if err := w.client.config.Verify(hop.PathOf(got), rpc.PeerCert(&at), time.Now()); err != nil {
		if !w.isUp() {
			_ = w.sendClose(context.WithoutCancel(ctx), got)
		}
		return err
	}
	got.State = networkservice.State_UP
	w.preferName(got.GetMechanism().GetParameters()["name"])
	w.established(got)
	return nil
}

// sayAttempts has a Request tell in the client's own path segment how many before it
// have failed, and why.
func (w *Wire) sayAttempts(c *networkservice.Connection) {
	attempts, _, err := w.Status()
	if attempts == 0 {
		hop.SetMetric(c, hop.MetricAttempts, "")
		hop.SetMetric(c, hop.MetricLastError, "")
		return
	}
	hop.SetMetric(c, hop.MetricAttempts, strconv.Itoa(attempts))
	hop.SetMetric(c, hop.MetricLastError, nserr.From(err).Reason.Code)
}

// preferName makes name, which was made up for an interface that nobody has named,
// the one to ask for: it stays when the path changes. "" leaves it open again.
func (w *Wire) preferName(name string) {
	if w.named {
		return
	}
	m := proto.Clone(w.prefs[0]).(*networkservice.Mechanism)
	delete(m.Parameters, "name")
	if name != "" {
		m.Parameters["name"] = name
	}
	w.prefs = []*networkservice.Mechanism{m}
}

func (w *Wire) established(got *networkservice.Connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sayEstablishedLocked(got)
	w.complained, w.why = false, ""
	w.conn, w.up, w.over, w.attempts, w.last = got, true, false, 0, nil
	w.path = hop.PathOf(got)
	w.ends = lifeEnd(got.GetPath(), time.Now(), w.client.config.TokenLifetime)
	w.tellLocked()
}

// sayEstablishedLocked logs what the answer to a Request has changed.
func (w *Wire) sayEstablishedLocked(got *networkservice.Connection) {
	log, ctx := w.client.log.With("connection", w.id), context.Background()
	ip := got.GetContext().GetIpContext()
	from, to := w.conn.GetNetworkServiceEndpointName(), got.GetNetworkServiceEndpointName()
	switch {
	case !w.up:
		log.Info("wire up", "service", got.GetNetworkService(), "endpoint", to)
	case from != to, !sameAddresses(w.conn.GetContext().GetIpContext(), ip):
		level := slog.LevelInfo
		if w.dry.paths > 0 { // from bad to bad; that packets come back is said
			level = slog.LevelDebug
		}
		log.Log(ctx, level, "wire moved", "service", got.GetNetworkService(), "from", from, "endpoint", to,
			"addresses", addrs(ip.GetSrcIpAddrs()), "remote", addrs(ip.GetDstIpAddrs()), "why", cmp.Or(w.why, "the answer to a refresh said so"))
	case w.attempts > 0:
		level := slog.LevelDebug
		if w.complained { // else nobody has heard that it was not
			level = slog.LevelInfo
		}
		log.Log(ctx, level, "wire refreshed again", "endpoint", to, "attempt", w.attempts+1)
	}
}

func sameAddresses(a, b *networkservice.IPContext) bool {
	return slices.Equal(a.GetSrcIpAddrs(), b.GetSrcIpAddrs()) && slices.Equal(a.GetDstIpAddrs(), b.GetDstIpAddrs())
}

// tellLocked tells whoever waits for a change.
func (w *Wire) tellLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// lifeEnd is when the first segment of a path expires, by a clock that nobody sets.
// A hop need not say when it does; if none does a token's life counts.
func lifeEnd(p *networkservice.Path, now time.Time, lifetime time.Duration) time.Time {
	left, known := lifetime, false
	for _, s := range p.GetPathSegments() {
		if !s.GetExpires().IsValid() {
			continue
		}
		if d := s.GetExpires().AsTime().Sub(now); !known || d < left {
			left, known = d, true
		}
	}
	return now.Add(left)
}

// hasEnded reports whether the life of the wire has, and it is not known yet.
func (w *Wire) hasEnded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up && !w.ends.After(time.Now())
}

// errNotAsked is why a wire has expired for which no Request has failed.
var errNotAsked = errors.New("no Request was made in time: this process did not run, or a hop gives the wire too short a life")

// expire notes that the life of the connection has ended. What follows is another
// one, in its place and under its id: each hop has let go of this one, or is about
// to.
func (w *Wire) expire() {
	w.prober.end()
	w.stale, w.givenUp = 0, false
	w.endDrought()
	w.mu.Lock()
	defer w.mu.Unlock()
	why := w.last
	if why == nil {
		why = errNotAsked
	}
	w.client.log.Warn("wire has expired, asking for a new one", "connection", w.id, "service", w.service,
		"endpoint", w.conn.GetNetworkServiceEndpointName(), "attempt", w.attempts, "error", why)
	c := proto.Clone(w.conn).(*networkservice.Connection)
	hop.Trim(c)
	c.Path.PathSegments[c.Path.Index].Expires = nil
	c.State = networkservice.State_DOWN
	w.conn, w.up, w.over, w.attempts, w.last, w.path = c, false, true, 0, nil, path.Path{}
	w.tellLocked()
}

// count notes a failed attempt.
func (w *Wire) count(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
	w.last = err
	w.tellLocked()
}

// setDown notes that the mesh says that the wire is broken.
func (w *Wire) setDown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn.GetState() == networkservice.State_DOWN {
		return
	}
	c := proto.Clone(w.conn).(*networkservice.Connection)
	c.State = networkservice.State_DOWN
	w.conn = c
	w.tellLocked()
}

func (w *Wire) tries() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts
}

func (w *Wire) isUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}
