// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// lookout tells wires that wait for an endpoint when one comes, so that they need
// not ask again and again: it watches the endpoints of each service that somebody
// waits for, at the client's manager. All wires that wait for a service share one
// stream, which is open while there are any.
type lookout struct {
	registry func() grpc.ClientConnInterface // as the manager shows it: the connection to that
	log      *slog.Logger

	mu     sync.Mutex
	posts  map[string]*post // by service; guarded by mu
	closed bool             // guarded by mu
	all    sync.WaitGroup   // the posts' goroutines
}

// post is the watch of one service. Its fields are guarded by lookout.mu.
type post struct {
	cancel  context.CancelFunc
	waiting map[*inbox]wish
	since   time.Time // when the stream was opened; zero while it is not open
	came    time.Time // when an endpoint came last, or changed
	renewed time.Time // when one registered again last, the same as before
}

// wish says what a wire wants to be told.
type wish struct {
	endpoint string // the only one that is of use; "" = any
	// failing: it is the endpoints that are known which have failed. That one
	// registers again is a sign of life then.
	failing bool
	// only: nothing but an endpoint that registers can help. Where a changed service
	// can, or a way that opens again, the wire asks by itself as often as otherwise.
	only bool
}

// waitsFor reports whether a Request with such an outcome may succeed when an
// endpoint registers.
func waitsFor(err error) (w wish, ok bool) {
	if err == nil {
		return wish{}, false
	}
	switch nserr.From(err).Reason {
	case nserr.UnknownService, nserr.NoEndpoint, nserr.UnknownEndpoint:
		return wish{only: true}, true
	case nserr.NoMatch, nserr.Draining: // what is drained no more registers again
		return wish{}, true
	case nserr.EndpointGone:
		return wish{only: true, failing: true}, true
	case nserr.EndpointsFailed:
		return wish{failing: true}, true
	}
	return wish{}, false
}

// watchRetry spaces the attempts to open a stream.
var watchRetry = backoff.Policy{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// findTimeout bounds the look at what is there.
const findTimeout = 5 * time.Second

func newLookout(registry func() grpc.ClientConnInterface, log *slog.Logger) *lookout {
	return &lookout{registry: registry, log: log, posts: make(map[string]*post)}
}

// wait has conn.EndpointCame posted when there is an endpoint of the service to ask
// for that was not there at the given time. It does so until leave; calling it again
// changes the wish.
//
// Services of other domains are not watched: the manager's registry does not know
// their endpoints.
func (l *lookout) wait(service string, b *inbox, w wish, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || strings.Contains(service, "@") {
		return
	}
	p := l.posts[service]
	if p == nil {
		ctx, cancel := context.WithCancel(context.Background())
		p = &post{cancel: cancel, waiting: make(map[*inbox]wish)}
		l.posts[service] = p
		l.all.Go(func() { l.routineWatch(ctx, service, p) })
	}
	if _, known := p.waiting[b]; !known && (p.came.After(since) || w.failing && p.renewed.After(since)) {
		b.post(conn.EndpointCame)
	}
	p.waiting[b] = w
}

// leave ends what wait has begun.
func (l *lookout) leave(service string, b *inbox) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.posts[service]
	if p == nil {
		return
	}
	delete(p.waiting, b)
	if len(p.waiting) == 0 {
		delete(l.posts, service)
		p.cancel()
	}
}

// watching reports whether whoever waits is told of everything that could help it,
// and that came after the given time.
func (l *lookout) watching(service string, b *inbox, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.posts[service]
	if p == nil || p.since.IsZero() || p.since.After(since) {
		return false
	}
	return p.waiting[b].only
}

// close ends all watches.
func (l *lookout) close() {
	l.mu.Lock()
	l.closed = true
	for _, p := range l.posts {
		p.cancel()
	}
	l.mu.Unlock()
	l.all.Wait()
}

// routineWatch keeps a stream open until ctx ends.
func (l *lookout) routineWatch(ctx context.Context, service string, p *post) {
	known := make(map[string]*registry.NetworkServiceEndpoint)
	for attempt := 0; ; attempt++ {
		watching, cancel := context.WithCancelCause(ctx)
		opened, err := l.follow(watching, service, p, known, rpc.EndSuperseded(cancel))
		cancel(nil)
		l.mu.Lock()
		p.since = time.Time{}
		l.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if context.Cause(watching) == rpc.ErrSuperseded {
			continue
		}
		if opened {
			attempt = 0
		}
		if attempt == 0 {
			l.log.Debug("endpoints cannot be watched, trying on", "service", service, "error", err)
		}
		if watchRetry.Wait(ctx, attempt) != nil {
			return
		}
	}
}

// follow looks at what is there, then at what comes, until the stream breaks. known
// is what it has seen before: where it comes back after a while, what is different
// has come. The stream ends with ctx.
func (l *lookout) follow(ctx context.Context, service string, p *post, known map[string]*registry.NetworkServiceEndpoint, watchOptions ...grpc.CallOption) (opened bool, err error) {
	client := registry.NewNetworkServiceEndpointRegistryClient(l.registry())
	query := func(watch bool) *registry.NetworkServiceEndpointQuery {
		return &registry.NetworkServiceEndpointQuery{
			NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{service}}, Watch: watch,
		}
	}
	if len(known) == 0 {
		if err := snapshot(ctx, client, query(false), known); err != nil {
			return false, err
		}
	}
	stream, err := client.Find(ctx, query(true), watchOptions...)
	if err != nil {
		return false, err
	}
	if _, err := stream.Header(); err != nil { // from here on nothing is missed
		return false, err
	}
	l.mu.Lock()
	p.since = time.Now()
	l.mu.Unlock()
	for {
		r, err := stream.Recv()
		if err != nil {
			return true, err
		}
		nse := r.GetNetworkServiceEndpoint()
		if r.GetDeleted() {
			delete(known, nse.GetName())
			continue
		}
		old := known[nse.GetName()]
		known[nse.GetName()] = nse
		if !proto.Equal(old, nse) {
			l.tell(p, nse.GetName(), sameButExpiry(old, nse))
		}
	}
}

// snapshot puts what there is into known.
func snapshot(ctx context.Context, client registry.NetworkServiceEndpointRegistryClient, q *registry.NetworkServiceEndpointQuery, known map[string]*registry.NetworkServiceEndpoint) error {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	stream, err := client.Find(ctx, q)
	if err != nil {
		return err
	}
	return rpc.Drain(stream, func(r *registry.NetworkServiceEndpointResponse) error {
		known[r.GetNetworkServiceEndpoint().GetName()] = r.GetNetworkServiceEndpoint()
		return nil
	})
}

// sameButExpiry reports whether an endpoint has only registered again.
func sameButExpiry(old, nse *registry.NetworkServiceEndpoint) bool {
	if old == nil {
		return false
	}
	old = proto.Clone(old).(*registry.NetworkServiceEndpoint)
	old.ExpirationTime = nse.GetExpirationTime()
	return proto.Equal(old, nse)
}

// tell tells those who wait that an endpoint has come, or is there still.
func (l *lookout) tell(p *post, endpoint string, renewed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if renewed {
		p.renewed = time.Now()
	} else {
		p.came = time.Now()
	}
	for b, w := range p.waiting {
		if (!renewed || w.failing) && (w.endpoint == "" || w.endpoint == endpoint) {
			b.post(conn.EndpointCame)
		}
	}
}
