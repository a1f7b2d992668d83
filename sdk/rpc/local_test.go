// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/token"
)

type text = wrapperspb.StringValue

// echo is a service of a unary method and a stream in both directions.
type echo struct {
	unary func(context.Context, *text) (*text, error)
	bidi  func(grpc.ServerStream) error
}

const (
	unaryMethod   = "/test.Echo/Unary"
	bidiMethod    = "/test.Echo/Bidi"
	collectMethod = "/test.Echo/Collect"
)

var (
	bidiDesc    = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	collectDesc = &grpc.StreamDesc{ClientStreams: true}
)

func (e *echo) register(r grpc.ServiceRegistrar) {
	stream := func(srv any, s grpc.ServerStream) error { return srv.(*echo).bidi(s) }
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{Unary("test.Echo", "Unary",
			func(e *echo, ctx context.Context, in *text) (*text, error) { return e.unary(ctx, in) })},
		Streams: []grpc.StreamDesc{
			{StreamName: "Bidi", Handler: stream, ClientStreams: true, ServerStreams: true},
			{StreamName: "Collect", Handler: stream, ClientStreams: true},
		},
	}, e)
}

// onBoth runs a test over a socket and in process: nobody may tell the difference.
func onBoth(t *testing.T, e *echo, test func(*testing.T, grpc.ClientConnInterface)) {
	t.Run("local", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := NewLocal(LocalOptions{})
			defer l.Close()
			e.register(l)
			test(t, l.Dial(LocalCaller{}))
		})
	})
	t.Run("socket", func(t *testing.T) {
		client, server := Plaintext()
		target := serve(t, unixURL(t), ServerOptions{Credentials: server}, e.register)
		test(t, dial(t, target, DialOptions{Credentials: client}))
	})
}

func openStream(t *testing.T, ctx context.Context, cc grpc.ClientConnInterface, opts ...grpc.CallOption) grpc.ClientStream {
	t.Helper()
	s, err := cc.NewStream(ctx, bidiDesc, bidiMethod, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type valueKey struct{}

func TestUnary(t *testing.T) {
	e := &echo{unary: func(ctx context.Context, in *text) (*text, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get("asked"); len(got) != 2 || got[0] != "a" || got[1] != "b" {
			t.Errorf("metadata %v", md)
		}
		if ctx.Value(valueKey{}) != nil {
			t.Error("the handler sees values of the caller")
		}
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the deadline is lost")
		}
		if m, _ := grpc.Method(ctx); m != unaryMethod {
			t.Errorf("method %q", m)
		}
		if p, ok := peer.FromContext(ctx); !ok || p.Addr == nil {
			t.Errorf("peer %v", p)
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("h", "1")); err != nil {
			t.Error(err)
		}
		if err := grpc.SendHeader(ctx, metadata.Pairs("h", "2")); err != nil {
			t.Error(err)
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("h", "3")); err == nil {
			t.Error("the header was set after it was sent")
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("t", "4")); err != nil {
			t.Error(err)
		}
		if in.GetValue() == "fail" {
			return nil, nserr.NoMatch.Errorf("nothing like that")
		}
		return &text{Value: in.GetValue() + "!"}, nil
	}}
	onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ctx = context.WithValue(ctx, valueKey{}, "mine")
		ctx = metadata.AppendToOutgoingContext(ctx, "asked", "a", "asked", "b")
		for _, in := range []string{"hello", "fail"} {
			var header, trailer metadata.MD
			var p peer.Peer
			out := &text{Value: "left over"}
			err := cc.Invoke(ctx, unaryMethod, &text{Value: in}, out, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p))
			switch in {
			case "hello":
				if err != nil || out.GetValue() != "hello!" {
					t.Errorf("answer %q, %v", out.GetValue(), err)
				}
			case "fail":
				if !errors.Is(err, nserr.NoMatch) || status.Code(err) != codes.NotFound || out.GetValue() != "left over" {
					t.Errorf("answer %q, %v", out.GetValue(), err)
				}
			}
			if got := header.Get("h"); len(got) != 2 || got[1] != "2" {
				t.Errorf("header %v", header)
			}
			if got := trailer.Get("t"); len(got) != 1 || got[0] != "4" {
				t.Errorf("trailer %v", trailer)
			}
			if p.Addr == nil || p.AuthInfo == nil {
				t.Errorf("peer %v", p)
			}
		}
	})
}

func TestUnknownMethod(t *testing.T) {
	onBoth(t, &echo{}, func(t *testing.T, cc grpc.ClientConnInterface) {
		for _, method := range []string{"/test.Echo/Other", "/other.Service/Unary"} {
			if err := cc.Invoke(t.Context(), method, &text{}, &text{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: %v", method, err)
			}
		}
	})
}

// A caller that gives up returns at once, whether the handler notices or not.
func TestUnaryGivesUp(t *testing.T) {
	for name, test := range map[string]struct {
		limit func(context.Context) (context.Context, context.CancelFunc)
		code  codes.Code
		is    error
	}{
		"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 50*time.Millisecond)
		}, codes.DeadlineExceeded, context.DeadlineExceeded},
		"cancel": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			timer := time.AfterFunc(50*time.Millisecond, cancel)
			return ctx, func() { timer.Stop(); cancel() }
		}, codes.Canceled, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			noticed := make(chan error, 2)
			e := &echo{unary: func(ctx context.Context, in *text) (*text, error) {
				<-ctx.Done()
				noticed <- ctx.Err()
				return nil, ctx.Err()
			}}
			onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
				ctx, cancel := test.limit(t.Context())
				defer cancel()
				err := cc.Invoke(ctx, unaryMethod, &text{}, &text{})
				if status.Code(err) != test.code || !errors.Is(err, test.is) {
					t.Errorf("error %v", err)
				}
				if err := cc.Invoke(ctx, unaryMethod, &text{}, &text{}); status.Code(err) != test.code {
					t.Errorf("begun too late: %v", err)
				}
			})
			for range 2 {
				if err := <-noticed; err == nil {
					t.Error("the handler was not told")
				}
			}
		})
	}
}

func TestLocalGivesUpOnDeafHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		l := NewLocal(LocalOptions{})
		(&echo{unary: func(context.Context, *text) (*text, error) {
			<-release
			return &text{Value: "late"}, nil
		}}).register(l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start, out := time.Now(), &text{}
		if err := l.Dial(LocalCaller{}).Invoke(ctx, unaryMethod, &text{}, out); !errors.Is(err, nserr.TimedOut) {
			t.Errorf("error %v", err)
		}
		if waited := time.Since(start); waited != time.Second+lastWord {
			t.Errorf("gave up after %v", waited)
		}
		close(release)
		l.Close() // waits for the handler
		if out.GetValue() != "" {
			t.Error("an answer came after the call")
		}
	})
}

// Two parts that share get what connections refer to, and a connection and path of their
// own: id, state and index are each one's.
func TestLocalShares(t *testing.T) {
	asked := &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{}, MechanismPreferences: []*networkservice.Mechanism{{}}}
	fill(asked.Connection.ProtoReflect())
	before := proto.CloneOf(asked)
	var served, answered *networkservice.Connection
	l := NewLocal(LocalOptions{})
	defer l.Close()
	RegisterNetworkService(l, sharing(func(in *networkservice.NetworkServiceRequest) *networkservice.Connection {
		if !proto.Equal(in, before) || in.MechanismPreferences[0] != asked.MechanismPreferences[0] {
			t.Errorf("the server has %v", in)
		}
		served = in.Connection
		answered = Shallow(served)
		answered.Id, answered.Path.Index = "answer", 1
		in.Connection.State, in.Connection.Path.Index = networkservice.State_UP, 0
		in.MechanismPreferences[0] = nil
		return answered
	}))
	got, err := networkservice.NewNetworkServiceClient(l.Dial(LocalCaller{Share: true})).Request(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(asked, before) {
		t.Errorf("what was asked has become %v", asked)
	}
	if got == answered || got.Path == answered.Path || !proto.Equal(got, answered) {
		t.Errorf("got %v, answered %v", got, answered)
	}
	for _, c := range []*networkservice.Connection{served, got} {
		if c.Mechanism != asked.Connection.Mechanism || c.Context != asked.Connection.Context || &c.Path.PathSegments[0] != &asked.Connection.Path.PathSegments[0] {
			t.Error("it is not shared")
		}
	}
}

type sharing func(*networkservice.NetworkServiceRequest) *networkservice.Connection

func (s sharing) Request(_ context.Context, in *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	return s(in), nil
}

func (sharing) Close(context.Context, *networkservice.Connection) (*emptypb.Empty, error) {
	return new(emptypb.Empty), nil
}

// Messages belong to whoever holds them: changing them, even while the other side
// still works, must not show there.
func TestLocalMessagesAreCopied(t *testing.T) {
	var kept *text
	l := NewLocal(LocalOptions{})
	defer l.Close()
	(&echo{
		unary: func(_ context.Context, in *text) (*text, error) { kept = in; return in, nil },
		bidi: func(s grpc.ServerStream) error {
			in := &text{}
			if err := s.RecvMsg(in); err != nil {
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
			in.Value = "changed by the server"
			return nil
		},
	}).register(l)
	cc := l.Dial(LocalCaller{})

	in, out := &text{Value: "x"}, &text{}
	if err := cc.Invoke(t.Context(), unaryMethod, in, out); err != nil {
		t.Fatal(err)
	}
	in.Value = "changed by the client"
	if kept.GetValue() != "x" || out.GetValue() != "x" {
		t.Errorf("the server has %q, the client got %q", kept.GetValue(), out.GetValue())
	}
	kept.Value = "changed by the server"
	if out.GetValue() != "x" {
		t.Errorf("the client has %q", out.GetValue())
	}

	s := openStream(t, t.Context(), cc)
	in = &text{Value: "y"}
	if err := s.SendMsg(in); err != nil {
		t.Fatal(err)
	}
	in.Value = "changed by the client"
	if err := s.RecvMsg(out); err != nil || out.GetValue() != "y" {
		t.Errorf("got %q, %v", out.GetValue(), err)
	}
	if err := s.RecvMsg(out); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestLocalCallerAndPeer(t *testing.T) {
	a := newAuthority(t, "example.org")
	server, client := a.source(t, "/server"), a.source(t, "/client")
	l := NewLocal(LocalOptions{Identity: server.identity})
	defer l.Close()
	var seen Caller
	(&echo{unary: func(ctx context.Context, in *text) (*text, error) { seen = CallerFrom(ctx); return in, nil }}).register(l)
	cc := l.Dial(LocalCaller{Identity: client.identity, Tokens: token.NewGenerator(client, time.Minute)})

	var p peer.Peer
	if err := cc.Invoke(t.Context(), unaryMethod, &text{}, &text{}, grpc.Peer(&p)); err != nil {
		t.Fatal(err)
	}
	if seen.ID != "spiffe://example.org/client" || !seen.Cert.Equal(client.identity().Cert) {
		t.Errorf("caller %q", seen.ID)
	}
	if cert := peerCert(p.AuthInfo); !cert.Equal(server.identity().Cert) {
		t.Error("the caller does not see whom it called")
	}
	tok, err := token.Parse(seen.Token)
	if err != nil || tok.VerifiedBy(seen.Cert) != nil || tok.Audience[0] != "spiffe://example.org/server" {
		t.Errorf("token %+v, %v", tok, err)
	}
}

func TestStream(t *testing.T) {
	e := &echo{bidi: func(s grpc.ServerStream) error {
		if err := s.SetHeader(metadata.Pairs("h", "1")); err != nil {
			return err
		}
		s.SetTrailer(metadata.Pairs("t", "2"))
		for {
			in := &text{}
			switch err := s.RecvMsg(in); {
			case err == io.EOF:
				return nserr.Busy.Errorf("enough")
			case err != nil:
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	}}
	onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
		s := openStream(t, t.Context(), cc)
		const n = 3 * streamWindow
		go func() {
			for i := range n {
				if err := s.SendMsg(&text{Value: string(rune('0' + i))}); err != nil {
					t.Error(err)
				}
			}
			if err := s.CloseSend(); err != nil {
				t.Error(err)
			}
		}()
		header, err := s.Header()
		if err != nil || len(header.Get("h")) != 1 {
			t.Errorf("header %v, %v", header, err)
		}
		for i := range n {
			out := &text{}
			if err := s.RecvMsg(out); err != nil || out.GetValue() != string(rune('0'+i)) {
				t.Fatalf("message %d is %q, %v", i, out.GetValue(), err)
			}
		}
		for range 2 { // a stream that has ended stays so
			if err := s.RecvMsg(&text{}); !errors.Is(err, nserr.Busy) {
				t.Errorf("the stream ended with %v", err)
			}
		}
		if got := s.Trailer().Get("t"); len(got) != 1 {
			t.Errorf("trailer %v", got)
		}
		if err := s.SendMsg(&text{}); err == nil {
			t.Error("sent after CloseSend")
		}
	})
}

func TestStreamThatServerEnds(t *testing.T) {
	e := &echo{bidi: func(grpc.ServerStream) error { return nil }}
	onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
		s := openStream(t, t.Context(), cc)
		if err := s.RecvMsg(&text{}); err != io.EOF {
			t.Errorf("received %v", err)
		}
		if err := s.SendMsg(&text{}); err != io.EOF {
			t.Errorf("sent with %v", err)
		}
	})
}

func TestCollect(t *testing.T) {
	e := &echo{bidi: func(s grpc.ServerStream) error {
		all := &text{}
		for in := (&text{}); ; {
			if err := s.RecvMsg(in); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
			all.Value += in.GetValue()
		}
		if all.Value == "" {
			return nserr.BadRequest.Errorf("nothing came")
		}
		return s.SendMsg(all)
	}}
	onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
		for _, parts := range [][]string{{"a", "b"}, {}} {
			s, err := cc.NewStream(t.Context(), collectDesc, collectMethod)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range parts {
				if err := s.SendMsg(&text{Value: p}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			out := &text{}
			err = s.RecvMsg(out)
			if len(parts) > 0 && (err != nil || out.GetValue() != "ab") {
				t.Errorf("collected %q, %v", out.GetValue(), err)
			}
			if len(parts) == 0 && !errors.Is(err, nserr.BadRequest) {
				t.Errorf("collected nothing: %v", err)
			}
		}
	})
}

// Whoever is blocked on a stream returns when the caller gives up.
func TestStreamCancel(t *testing.T) {
	ended := make(chan error, 2)
	e := &echo{bidi: func(s grpc.ServerStream) error {
		if err := s.SendMsg(&text{Value: "begun"}); err != nil {
			return err
		}
		err := s.RecvMsg(&text{})
		ended <- err
		return err
	}}
	onBoth(t, e, func(t *testing.T, cc grpc.ClientConnInterface) {
		ctx, cancel := context.WithCancel(t.Context())
		s := openStream(t, ctx, cc)
		if err := s.RecvMsg(&text{}); err != nil {
			t.Fatal(err)
		}
		received := make(chan error)
		go func() { received <- s.RecvMsg(&text{}) }()
		cancel()
		if err := <-received; status.Code(err) != codes.Canceled {
			t.Errorf("received %v", err)
		}
		if err := s.SendMsg(&text{}); err == nil {
			t.Error("sent on a cancelled stream")
		}
	})
	for range 2 {
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Errorf("the handler got %v", err)
		}
	}
}

// A receiver that does not keep up stops the sender, not the memory.
func TestLocalStreamIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		l := NewLocal(LocalOptions{})
		defer l.Close()
		(&echo{bidi: func(s grpc.ServerStream) error {
			for {
				if err := s.SendMsg(&text{}); err != nil {
					return err
				}
				sent++
			}
		}}).register(l)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := openStream(t, ctx, l.Dial(LocalCaller{}))
		synctest.Wait()
		if sent != streamWindow {
			t.Errorf("sent %d", sent)
		}
		if err := s.RecvMsg(&text{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if sent != streamWindow+1 {
			t.Errorf("sent %d after one was read", sent)
		}
	})
}

func TestLocalClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		block := func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Second); return ctx.Err() }
		l := NewLocal(LocalOptions{})
		(&echo{
			unary: func(ctx context.Context, _ *text) (*text, error) { return nil, block(ctx) },
			bidi:  func(s grpc.ServerStream) error { return block(s.Context()) },
		}).register(l)
		cc := l.Dial(LocalCaller{})
		errs := make(chan error)
		go func() { errs <- cc.Invoke(t.Context(), unaryMethod, &text{}, &text{}) }()
		go func() { errs <- openStream(t, t.Context(), cc).RecvMsg(&text{}) }()
		synctest.Wait()

		start := time.Now()
		closed := make(chan struct{})
		go func() { l.Close(); close(closed) }()
		for range 2 {
			if err := <-errs; !errors.Is(err, nserr.Stopping) {
				t.Errorf("interrupted with %v", err)
			}
		}
		<-closed
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("Close waited %v for the handlers", waited)
		}
		if err := cc.Invoke(t.Context(), unaryMethod, &text{}, &text{}); !errors.Is(err, nserr.Stopping) {
			t.Errorf("served after Close: %v", err)
		}
		if _, err := cc.NewStream(t.Context(), bidiDesc, bidiMethod); !errors.Is(err, nserr.Stopping) {
			t.Errorf("served after Close: %v", err)
		}
	})
}

func BenchmarkLocalUnary(b *testing.B) {
	l := NewLocal(LocalOptions{})
	defer l.Close()
	(&echo{unary: func(_ context.Context, in *text) (*text, error) { return in, nil }}).register(l)
	cc := l.Dial(LocalCaller{})
	in, out := &text{Value: "x"}, &text{}
	b.ReportAllocs()
	for b.Loop() {
		if err := cc.Invoke(b.Context(), unaryMethod, in, out); err != nil {
			b.Fatal(err)
		}
	}
}
