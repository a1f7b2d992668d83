// SPDX-License-Identifier: Apache-2.0

// Package regpath is what registries, their proxies and their clients share on
// the wire beside the messages themselves: the path of a registration.
//
// A Register or Unregister carries the gRPC metadata "path", a JSON object with
// the tokens of the hops so far; the reply's header carries it back with the
// tokens of all hops, and the client sends that with its next call
// (protocol.md §4.2). A server reads the path, takes its place in it, checks
// the left part, and answers:
//
//	p, err := regpath.FromIncoming(ctx)
//	err = p.Advance(caller.Token, own)
//	err = policy.Check(caller, p.Tokens(), now)
//	… a proxy calls upstream with p.ToOutgoing(ctx) and adopts FromHeader …
//	err = p.SetHeader(ctx)
package regpath

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Key is the metadata key of the path.
const Key = "path"

// ClockKey is the metadata key of what the clock of the hop shows that answers, RFC 3339
// with fractions of a second: when a registration expires is told by that clock. The
// reference does not send it.
const ClockKey = "nsm-clock"

// Limits of what a peer may send. A registration passes four hops at most in
// the reference (endpoint, manager, two gateways); a token has up to 8 KiB.
const (
	MaxSegments = 16
	MaxSize     = 160 << 10 // bytes of JSON
)

// Path is the way of a registration so far. The zero Path is that of a client
// that calls for the first time. The field names are those of the JSON form.
type Path struct {
	Index        uint32 // of the hop that holds the path; of the sender while it is on the wire
	PathSegments []Segment
}

// Segment is one hop.
type Segment struct {
	Token string `json:"token"` // made by this hop for the next one, by the last hop for its caller
}

// Parse reads the JSON form. It fails with nserr.BadPath.
func Parse(text string) (Path, error) {
	var p Path
	if len(text) > MaxSize {
		return Path{}, nserr.BadPath.Errorf("metadata %q has %d bytes, at most %d are allowed", Key, len(text), MaxSize)
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return Path{}, nserr.BadPath.Errorf("metadata %q is not a path: %w", Key, err)
	}
	if len(p.PathSegments) > MaxSegments {
		return Path{}, nserr.BadPath.Errorf("metadata %q has %d segments, at most %d are allowed", Key, len(p.PathSegments), MaxSegments)
	}
	return p, nil
}

// String returns the JSON form.
func (p Path) String() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(text)
}

// FromIncoming returns the path that the caller sent, the zero Path if none.
func FromIncoming(ctx context.Context) (Path, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return FromHeader(md)
}

// FromHeader returns the path in the header of a reply, the zero Path if none.
// Of several values the last counts, as in the reference.
func FromHeader(md metadata.MD) (Path, error) {
	values := md.Get(Key)
	if len(values) == 0 {
		return Path{}, nil
	}
	return Parse(values[len(values)-1])
}

// ToOutgoing returns a context that sends p with the calls made under it.
func (p Path) ToOutgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, Key, p.String())
}

// SetHeader puts p into the header of the reply that the handler with this ctx
// will give: p as the caller sees it, with the caller's index, and this hop's clock.
func (p Path) SetHeader(ctx context.Context) error {
	if p.Index > 0 {
		p.Index--
	}
	return grpc.SetHeader(ctx, metadata.Pairs(Key, p.String(), ClockKey, time.Now().UTC().Format(time.RFC3339Nano)))
}

// ClockFrom returns what the clock of the hop showed that answered with this header; ok
// is false if it did not say.
func ClockFrom(md metadata.MD) (at time.Time, ok bool) {
	values := md.Get(ClockKey)
	if len(values) == 0 {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, values[len(values)-1])
	return at, err == nil
}

// Advance takes the next place in p: the previous segment gets the caller's
// token, the own one ours. Without a token of the caller its segment keeps the
// one received. It fails with nserr.BadPath if the caller is not in p.
func (p *Path) Advance(peerToken, ownToken string) error {
	if len(p.PathSegments) == 0 {
		p.Index, p.PathSegments = 1, []Segment{{Token: peerToken}, {Token: ownToken}}
		return nil
	}
	own := int(p.Index) + 1
	if own > len(p.PathSegments) {
		return nserr.BadPath.Errorf("Path.Index+1==%d should be less or equal len(Path.PathSegments)==%d", own, len(p.PathSegments))
	}
	segments := append([]Segment(nil), p.PathSegments...) // a Path is copied by value; do not write through to the original
	if own == len(segments) {
		if own == MaxSegments {
			return nserr.BadPath.Errorf("path has %d segments already", own)
		}
		segments = append(segments, Segment{})
	}
	if peerToken != "" {
		segments[own-1].Token = peerToken
	}
	segments[own].Token = ownToken
	p.Index, p.PathSegments = uint32(own), segments
	return nil
}

// Trim drops what is behind the index: for the hop where the path ends.
func (p *Path) Trim() {
	if end := int(p.Index) + 1; end < len(p.PathSegments) {
		p.PathSegments = p.PathSegments[:end:end]
	}
}

// Tokens returns the tokens up to the index, which is the part that the holder
// of p can judge; what is behind it stems from an earlier call (§2.6).
func (p Path) Tokens() []string {
	end := min(int(p.Index)+1, len(p.PathSegments))
	raws := make([]string, end)
	for i := range raws {
		raws[i] = p.PathSegments[i].Token
	}
	return raws
}
