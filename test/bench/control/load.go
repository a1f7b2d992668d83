// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/report"
)

// loadQuestion is a question to a "load" child.
type loadQuestion struct {
	Call     *place // from now on
	WithFile bool   // Requests name the client's namespace, which goes along as a descriptor

	Do       string        // "Request", "refresh" or "Close"
	InFlight int           // at a time
	For      time.Duration // of Requests and refreshes; Close closes all that are open
	Most     int           // Requests; 0 = as many as there is time for
	Show     bool          // one of the connections that are open then
}

// loadAnswer is what became of it.
type loadAnswer struct {
	Done, Failed, Open int
	Why                string // of the first failure
	Elapsed            time.Duration
	P50, P99           time.Duration
	Shown              []byte // a connection, encoded
}

func loadRole([]string) error {
	l := new(load)
	return report.Answer(l.do)
}

// load has the connections of a client. Each of those who call has a gRPC
// connection of its own, as workloads have.
type load struct {
	callers []networkservice.NetworkServiceClient
	prefs   []*networkservice.Mechanism
	files   []*os.File
	open    []*networkservice.Connection
	dial    func() (*grpc.ClientConn, error)
	number  int
}

func (l *load) do(q loadQuestion) (a loadAnswer, err error) {
	if q.Call != nil {
		return a, l.call(*q.Call, q.WithFile)
	}
	for len(l.callers) < q.InFlight {
		cc, err := l.dial()
		if err != nil {
			return a, err
		}
		l.callers = append(l.callers, networkservice.NewNetworkServiceClient(cc))
	}
	operation, ok := operations[q.Do]
	if !ok {
		return a, fmt.Errorf("no operation is called %q", q.Do)
	}
	a = l.run(q, operation)
	if q.Show && len(l.open) > 0 {
		a.Shown, err = proto.Marshal(l.open[0])
	}
	return a, err
}

// call says whom to call from now on.
func (l *load) call(p place, withFile bool) error {
	s, err := p.identity()
	if err != nil {
		return err
	}
	creds, _ := ours.Credentials(s)
	l.dial = func() (*grpc.ClientConn, error) {
		return rpc.Dial(p.Manager, rpc.DialOptions{Credentials: creds, Tokens: ours.Tokens(s)})
	}
	kernel := &networkservice.Mechanism{Cls: "LOCAL", Type: "KERNEL", Parameters: make(map[string]string)}
	l.prefs = []*networkservice.Mechanism{kernel}
	if !withFile {
		return nil
	}
	space, err := netns.New()
	if err != nil {
		return err
	}
	l.files = []*os.File{space}
	kernel.Parameters["inodeURL"], err = rpc.InodeURL(space)
	return err
}

// operation is what callers do.
type operation struct {
	// next returns the connection of the next call; nil = there is no more to do. The
	// shift's lock is held.
	next func(*shift) *networkservice.Connection
	// call makes it, and returns what it leaves open; nil = nothing.
	call func(context.Context, *load, networkservice.NetworkServiceClient, *networkservice.Connection) (*networkservice.Connection, error)
}

var operations = map[string]operation{
	"Request": {next: (*shift).fresh, call: ask},
	"refresh": {next: (*shift).oldest, call: ask},
	"Close":   {next: (*shift).last, call: closeConn},
}

// run has q.InFlight callers make one call after the other, until there is no more
// to do or time is over.
func (l *load) run(q loadQuestion, do operation) (a loadAnswer) {
	s := &shift{load: l, todo: l.open, most: q.Most}
	start := time.Now()
	if q.For > 0 {
		s.until = start.Add(q.For)
	}
	var working sync.WaitGroup
	for _, caller := range l.callers[:q.InFlight] {
		working.Go(func() { s.work(caller, do) })
	}
	working.Wait()
	l.open = append(s.left, s.todo...)
	a = loadAnswer{Done: len(s.took), Failed: s.failed, Why: s.why, Open: len(l.open), Elapsed: time.Since(start)}
	if len(s.took) > 0 {
		a.P50, a.P99 = report.Quantile(s.took, 0.5), report.Quantile(s.took, 0.99)
	}
	return a
}

// callTimeout is a call's deadline.
const callTimeout = 10 * time.Second

// shift is what the callers share while they work.
type shift struct {
	load  *load
	until time.Time // zero = until there is no more to do
	most  int

	mu     sync.Mutex
	todo   []*networkservice.Connection // open before; guarded by mu
	left   []*networkservice.Connection // open afterwards; guarded by mu
	took   []time.Duration              // of calls that succeeded; guarded by mu
	begun  int                          // guarded by mu
	failed int                          // guarded by mu
	why    string                       // guarded by mu
}

func (s *shift) work(caller networkservice.NetworkServiceClient, do operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.over() {
		c := do.next(s)
		if c == nil {
			return
		}
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		start := time.Now()
		left, err := do.call(rpc.WithFiles(ctx, s.load.files...), s.load, caller, c)
		took := time.Since(start)
		cancel()
		s.mu.Lock()
		s.done(left, took, err)
	}
}

func (s *shift) over() bool { return !s.until.IsZero() && !time.Now().Before(s.until) }

// done notes how a call ended. What a failed one was about is not open any more, as
// far as this load is concerned.
func (s *shift) done(left *networkservice.Connection, took time.Duration, err error) {
	if err != nil {
		if s.failed++; s.why == "" {
			s.why = err.Error()
		}
		return
	}
	s.took = append(s.took, took)
	if left != nil {
		s.left = append(s.left, left)
	}
}

// fresh returns a connection to be requested.
func (s *shift) fresh() *networkservice.Connection {
	if s.most > 0 && s.begun == s.most {
		return nil
	}
	s.begun++
	s.load.number++
	id := fmt.Sprintf("client-%d", s.load.number)
	return &networkservice.Connection{
		Id: id, NetworkService: service,
		Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "client", Id: id}}},
	}
}

// oldest returns the connection that was refreshed longest ago, of those that nobody
// is refreshing now.
func (s *shift) oldest() *networkservice.Connection {
	if len(s.todo) == 0 {
		s.todo, s.left = s.left, nil
	}
	return s.last()
}

// last returns one that is open, for good.
func (s *shift) last() *networkservice.Connection {
	if len(s.todo) == 0 {
		return nil
	}
	c := s.todo[0]
	s.todo = s.todo[1:]
	return c
}

// ask requests or refreshes a connection. The answer is the client's again: with its
// own id, at its place in the path.
func ask(ctx context.Context, l *load, caller networkservice.NetworkServiceClient, c *networkservice.Connection) (*networkservice.Connection, error) {
	got, err := caller.Request(ctx, &networkservice.NetworkServiceRequest{Connection: c, MechanismPreferences: l.prefs})
	if err != nil {
		return nil, err
	}
	got.Path.Index = 0
	got.Id = got.GetPath().GetPathSegments()[0].GetId()
	return got, nil
}

func closeConn(ctx context.Context, _ *load, caller networkservice.NetworkServiceClient, c *networkservice.Connection) (*networkservice.Connection, error) {
	_, err := caller.Close(ctx, c)
	return nil, err
}
