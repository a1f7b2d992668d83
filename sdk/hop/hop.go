// SPDX-License-Identifier: Apache-2.0

// Package hop is what every server of the NetworkService API does in the same
// way, be it a manager, a forwarder or an endpoint: find its place in the path,
// renew the tokens, find out who asks and whether they may, and tell watchers
// what happens to connections.
//
// A server's Request reads
//
//	call, err := s.hop.Admit(ctx, req.GetConnection())   // who asks, which segment are we, may they
//	…
//	s.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
//		if t.Record != nil { err := t.Record.binding.Check(call) … }  // is it theirs
//		reply, err := asking.Ask(ctx, next, request)                  // a hop that has a next one
//		t.Record.next.Hold(next, reply, s.monitor)
//		t.ExpireAt(call.Expiry(ctx))
//		s.monitor.Publish(reply)
//	})
//	return call.Reply(reply), nil
//
// # Asking and taking back
//
// What is behind a hop's own segment in a Request that it sends, the hop that is
// asked has built. Whoever asks another one than has built it, or one that was told to
// close it, trims the path first.
//
// So a Request with nothing behind is a first one. If its answer does not come, only
// who has asked can know what may have been built, and tells the next hop to close it.
// One with something behind is a refresh: if its answer does not come, what stands
// goes on to stand. A hop that knows nothing, as after a restart, goes by the names in
// the path where it can, and else takes the path for that of whom it asks: what was
// built in vain expires, but a wire that is closed by mistake is lost.
//
// A client has one hop to ask, and calls [Ask]. A hop that others wait for asks several
// [InTurn], by an [Asking] that has its [Cleanup] close in the background what was built
// in vain. An old path is closed by [Next.CloseSoon] if the new one needs what it holds,
// which waits for a moment only.
//
// This is where protobuf messages are at home; the packages below it know values.
package hop

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// Hop is one server's place in the mesh. It may be copied.
type Hop struct {
	Name    string          // of the server's path segments
	Tokens  token.Generator // makes the server's tokens
	Policy  Policy          // nil means Strict
	Monitor *Monitor        // knows the server's connections
}

// Call is a Request or Close that was admitted.
type Call struct {
	// Conn is the connection as this hop sees it: id and path index are its own,
	// tokens and expiries of the previous and the own segment are fresh. The server may
	// put something else in the place of what it has, but not change what it refers to:
	// the caller may do so as well, see rpc.Shallow.
	Conn *networkservice.Connection

	Caller  rpc.Caller // the adjacent hop
	Binding Binding    // whom the connection belongs to

	prevExpires time.Time
	prevID      string
}

// Binding is whom a connection belongs to: the identity that opened it, and the
// neighbour it came through. Nobody else may change or close it at this hop.
type Binding struct {
	Owner  string // SPIFFE ID of the first segment
	Caller string // SPIFFE ID of the adjacent hop
}

// Check fails with nserr.WrongOwner unless call comes from whom b names.
func (b Binding) Check(call *Call) error { return b.check(call.prevID, call.Binding) }

func (b Binding) check(id string, other Binding) error {
	if b != other {
		return nserr.WrongOwner.Errorf("connection %s was opened by %s through %s, not by %s through %s",
			id, b.Owner, b.Caller, other.Owner, other.Caller)
	}
	return nil
}

// Admit takes in a connection that arrived with a Request or Close. It changes conn and
// its path in place, which are of this call alone, but none of the path's segments.
func (h Hop) Admit(ctx context.Context, conn *networkservice.Connection) (*Call, error) {
	if err := Validate(conn); err != nil {
		return nil, err
	}
	caller := rpc.CallerFrom(ctx)
	p, err := path.Enter(PathOf(conn), conn.GetId(), h.Name)
	if err != nil {
		return nil, err
	}
	if p.Index < 1 {
		return nil, nserr.BadPath.Errorf("the path starts at %q, which is this hop: a caller puts its own segment first", h.Name)
	}
	if err := h.refreshTokens(&p, caller); err != nil {
		return nil, err
	}
	now := time.Now()
	if err := h.policy().Admit(caller, p, now); err != nil {
		return nil, err
	}
	prev := &p.Segments[p.Index-1]
	if t, err := token.Parse(prev.Token); err == nil && t.Expires.Before(prev.Expires) {
		prev.Expires = t.Expires // whatever else was claimed for it
	}
	if prev.Expires.IsZero() {
		return nil, nserr.NoToken.Errorf("expiration for the previous path segment cannot be nil")
	}
	if !prev.Expires.After(now) {
		return nil, nserr.TokenExpired.Errorf("the token of %q expired %s ago", prev.Name, now.Sub(prev.Expires).Round(time.Second))
	}
	binding := Binding{Owner: subject(p.Segments[0].Token), Caller: callerID(caller, prev.Token)}
	if id := binding.id(h.Name, *prev); p.Current().ID != id {
		if err := h.Monitor.checkClaim(p.Current().ID, binding); err != nil {
			return nil, err
		}
		p = path.Trim(p) // what is behind belongs to the way that the path took before
		p.Segments[p.Index].ID = id
	}
	setPath(conn, p)
	conn.Id = p.Current().ID
	return &Call{
		Conn:        conn,
		Caller:      caller,
		Binding:     binding,
		prevExpires: prev.Expires,
		prevID:      prev.ID,
	}, nil
}

// id is the id that the hop called name has for a connection. It follows from
// whose the connection is and what it is called at the hop before. So nobody can
// name a connection of somebody else, and nothing has to be remembered for that:
// a hop that has restarted, a Request that is sent again because the answer was
// lost, and a client that comes back from a crash with nothing but the id it
// chose, all arrive at the same connection.
func (b Binding) id(name string, prev path.Segment) string {
	var room [512]byte
	what := append(room[:0], uuid.Nil[:]...) // the name space
	for i, part := range [...]string{name, b.Owner, b.Caller, prev.Name, prev.ID} {
		if i > 0 {
			what = append(what, ' ')
		}
		what = strconv.AppendQuote(what, part)
	}
	sum := sha256.Sum256(what)
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 8<<4 // version 8: RFC 9562, 5.8
	id[8] = id[8]&0x3f | 0x80 // the RFC's variant
	return id.String()
}

// refreshTokens puts the caller's token, made for this hop, in the previous
// segment and this hop's token, made for the caller, in its own (§2.5).
func (h Hop) refreshTokens(p *path.Path, caller rpc.Caller) error {
	if caller.Token != "" {
		p.Segments[p.Index-1].Token = caller.Token
		p.Segments[p.Index-1].Expires = caller.TokenExpires
	}
	own, expires, err := h.Tokens(caller.Cert)
	if err != nil {
		return err
	}
	p.Segments[p.Index].Token = own
	p.Segments[p.Index].Expires = expires
	return nil
}

func (h Hop) policy() Policy {
	if h.Policy == nil {
		return Strict{}
	}
	return h.Policy
}

// Reply turns this hop's view of a connection into its caller's: id and index
// are the caller's again, every segment stays (§2.4). conn, which the hop keeps and has
// published, stays as it is.
func (c *Call) Reply(conn *networkservice.Connection) *networkservice.Connection {
	out := rpc.Shallow(conn)
	out.Id = c.prevID
	out.Path.Index = c.Conn.Path.Index - 1
	return out
}

// Expiry is when this hop has to close the connection if nobody refreshes it:
// when the previous hop's token ends, less what is left of the time for this
// call, so that the last refresh can still arrive (§2.7).
func (c *Call) Expiry(ctx context.Context) time.Time {
	margin := time.Duration(0)
	if deadline, ok := rpc.CallerDeadline(ctx); ok {
		margin = min(time.Until(deadline), time.Until(c.prevExpires)/3)
	}
	return c.prevExpires.Add(-max(margin, 0))
}

// Anew reports whether a Request for a connection that was last as given wants to
// have it made anew: it says so, or it is for another network service.
func Anew(last, asked *networkservice.Connection) bool {
	return asked.GetState() == networkservice.State_RESELECT_REQUESTED ||
		last != nil && last.GetNetworkService() != asked.GetNetworkService()
}

// PathOf returns conn's path as a value.
func PathOf(conn *networkservice.Connection) path.Path {
	p := path.Path{Index: int(conn.GetPath().GetIndex())}
	if segments := conn.GetPath().GetPathSegments(); len(segments) > 0 {
		p.Segments = make([]path.Segment, len(segments))
		for i, s := range segments {
			p.Segments[i] = path.Segment{Name: s.GetName(), ID: s.GetId(), Token: s.GetToken(), Metrics: s.GetMetrics()}
			if s.GetExpires().IsValid() {
				p.Segments[i].Expires = s.GetExpires().AsTime()
			}
		}
	}
	return p
}

// setPath makes p conn's path. Segments that change are replaced: others may refer to
// those that conn had (rpc.Shallow).
func setPath(conn *networkservice.Connection, p path.Path) {
	segments := make([]*networkservice.PathSegment, len(p.Segments))
	copy(segments, conn.GetPath().GetPathSegments())
	for i, s := range p.Segments {
		if isSegment(segments[i], s) {
			continue
		}
		seg := rpc.ShallowSegment(segments[i])
		seg.Name, seg.Id, seg.Token, seg.Metrics, seg.Expires = s.Name, s.ID, s.Token, s.Metrics, nil
		if !s.Expires.IsZero() {
			seg.Expires = timestamppb.New(s.Expires)
		}
		segments[i] = seg
	}
	if conn.Path == nil {
		conn.Path = &networkservice.Path{}
	}
	conn.Path.Index, conn.Path.PathSegments = uint32(p.Index), segments
}

// isSegment reports whether seg says what s does.
func isSegment(seg *networkservice.PathSegment, s path.Segment) bool {
	if seg == nil || seg.Name != s.Name || seg.Id != s.ID || seg.Token != s.Token || !maps.Equal(seg.Metrics, s.Metrics) {
		return false
	}
	if s.Expires.IsZero() {
		return seg.Expires == nil
	}
	return seg.Expires.IsValid() && seg.Expires.AsTime().Equal(s.Expires)
}

// Trim cuts the path behind conn's own segment; the endpoint does so (§2.4).
func Trim(conn *networkservice.Connection) {
	conn.Path.PathSegments = slices.Clip(conn.GetPath().GetPathSegments()[:conn.GetPath().GetIndex()+1])
}

// What an originator says in its own segment while Requests fail.
const (
	MetricAttempts  = "attempts"   // how many in a row
	MetricLastError = "last_error" // why the last one did: the code of a reason
)

// SetMetric records a key in the hop's own segment, where every client and
// observer of the connection finds it (§2.12). An empty value removes it.
func SetMetric(conn *networkservice.Connection, key, value string) {
	old := conn.GetCurrentPathSegment()
	if old == nil || old.Metrics[key] == value {
		return
	}
	s := rpc.ShallowSegment(old)
	s.Metrics = make(map[string]string, len(old.Metrics)+1)
	maps.Copy(s.Metrics, old.Metrics)
	if s.Metrics[key] = value; value == "" {
		delete(s.Metrics, key)
	}
	conn.Path.PathSegments = slices.Clone(conn.Path.PathSegments)
	conn.Path.PathSegments[conn.Path.Index] = s
}

// NextID is the SPIFFE ID of the hop behind conn's own segment: whom the
// certificate that it has shown names, or on a connection without TLS, which only
// tests have, what its token says. checkReply has seen that there is one.
func NextID(conn *networkservice.Connection, cert *x509.Certificate) string {
	if cert == nil {
		return subject(conn.GetNextPathSegment().GetToken())
	}
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return ""
	}
	return id.String()
}

// Senders are those whom a Request comes from as far as this hop can tell: its
// caller, whom TLS has proved, and whom the caller names as its own, unless the
// path begins with the caller. What the path says of those before them need not
// be true.
func (c *Call) Senders() []string {
	ids := []string{c.Binding.Caller}
	if i := int(c.Conn.GetPath().GetIndex()) - 2; i >= 0 {
		ids = append(ids, subject(c.Conn.GetPath().GetPathSegments()[i].GetToken()))
	}
	return ids
}

func subject(raw string) string {
	t, err := token.Parse(raw)
	if err != nil {
		return ""
	}
	return t.Subject
}

// Identity is who makes a call: whom TLS proved it to be, or on a connection
// without TLS whom its token names; "" if neither says.
func Identity(caller rpc.Caller) string { return callerID(caller, caller.Token) }

// callerID is the identity that TLS proved, or on a connection without TLS,
// which only tests have, what the token says.
func callerID(caller rpc.Caller, raw string) string {
	if caller.ID != "" {
		return caller.ID
	}
	return subject(raw)
}
