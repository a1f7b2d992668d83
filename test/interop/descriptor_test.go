// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/edwarnicke/grpcfd"
	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/common"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	kernelmech "github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/recvfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// calls is how many Requests with a file each go over one connection, atOnce
// how many of them are under way together. More would be unfair to the reference's
// client, which does not bound them itself: see TestBurstDoesNotPanicReference.
const (
	calls  = 100
	atOnce = 8
)

// In these tests every Request names a file that holds the connection's id, and
// every reply one that holds "reply to " and the id. Each side reads the other's
// through the descriptor alone.

func TestDescriptorsFromReference(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		files := newFiles(t)
		at := ours.Serve(t, as("server"), ref.Socket(t), func(s *grpc.Server) {
			networkservice.RegisterNetworkServiceServer(s, handler(func(ctx context.Context, conn *networkservice.Connection) error {
				f, err := rpc.ReceiveFile(ctx, conn.GetMechanism().GetParameters()[common.InodeURL])
				if err != nil {
					return err
				}
				defer f.Close()
				if got := contentOf(t, "/proc/self/fd/"+strconv.Itoa(int(f.Fd()))); got != conn.GetId() {
					return fmt.Errorf("the file of %s holds %q", conn.GetId(), got)
				}
				return answerWith(ctx, conn, files.write("reply to "+conn.GetId()))
			}))
		})
		client := next.NewNetworkServiceClient(
			recvfd.NewClient(),
			sendfd.NewClient(), // in this order, as in the reference's manager
			networkservice.NewNetworkServiceClient(dialRef(t, as("client"), at.URL)),
		)
		together(t, func(id string) error {
			conn, err := client.Request(soon(t), requestWith(id, "file://"+files.write(id)))
			if err != nil {
				return err
			}
			return checkReply(t, id, pathOf(t, conn.GetMechanism().GetParameters()[common.InodeURL]))
		})
	})
}

func TestDescriptorsToReference(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		files := newFiles(t)
		server := next.NewNetworkServiceServer(
			recvfd.NewServer(),
			sendfd.NewServer(), // in this order, as in the reference's endpoint
			handler(func(_ context.Context, conn *networkservice.Connection) error {
				parameters := conn.GetMechanism().GetParameters()
				if got := contentOf(t, pathOf(t, parameters[common.InodeURL])); got != conn.GetId() {
					return fmt.Errorf("the file of %s holds %q", conn.GetId(), got)
				}
				parameters[common.InodeURL] = "file://" + files.write("reply to "+conn.GetId())
				return nil
			}),
		)
		at := ref.Serve(t, "server", []grpc.ServerOption{as("server").ServerOption()}, []string{ref.Socket(t)},
			func(context.Context, []string) func(*grpc.Server) {
				return func(s *grpc.Server) { networkservice.RegisterNetworkServiceServer(s, server) }
			})
		client := networkservice.NewNetworkServiceClient(ours.Dial(t, as("client"), at.URL()))
		together(t, func(id string) error {
			f, err := os.Open(files.write(id))
			if err != nil {
				return err
			}
			defer f.Close()
			inode, err := rpc.InodeURL(f)
			if err != nil {
				return err
			}
			var p peer.Peer
			conn, err := client.Request(rpc.WithFiles(soon(t), f), requestWith(id, inode), grpc.Peer(&p))
			if err != nil {
				return err
			}
			reply, err := rpc.ReceiveReplyFile(soon(t), &p, conn.GetMechanism().GetParameters()[common.InodeURL])
			if err != nil {
				return err
			}
			defer reply.Close()
			return checkReply(t, id, "/proc/self/fd/"+strconv.Itoa(int(reply.Fd())))
		})
	})
}

// grpcfd sends what descriptors wait along with whatever it writes next, and panics
// when that has fewer bytes. Here 64 calls at once are made over one connection of
// ours to a server of the reference's, each handler queues a descriptor, and the
// next write is a frame of flow control, 13 bytes: more than a few calls under way
// would end this process.
func TestBurstDoesNotPanicReference(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		file := newFiles(t).write("reply")
		at := ref.Serve(t, "server", []grpc.ServerOption{as("server").ServerOption()}, []string{ref.Socket(t)},
			func(context.Context, []string) func(*grpc.Server) {
				return func(s *grpc.Server) {
					networkservice.RegisterNetworkServiceServer(s, handler(func(ctx context.Context, conn *networkservice.Connection) error {
						sender, ok := grpcfd.FromContext(ctx)
						if !ok {
							return fmt.Errorf("no descriptors over this connection")
						}
						sender.SendFilename(file)
						conn.Labels = nil
						select { // as long as more requests come in
						case <-time.After(20 * time.Millisecond):
						case <-ctx.Done():
						}
						return nil
					}))
				}
			})
		client := networkservice.NewNetworkServiceClient(ours.Dial(t, as("client"), at.URL()))
		large := strings.Repeat("x", 20<<10) // a few of them make the server open its window
		var running sync.WaitGroup
		for range 64 {
			running.Go(func() {
				request := requestWith("id", "file:///dev/null")
				request.Connection.Labels = map[string]string{"large": large}
				if _, err := client.Request(soon(t), request); err != nil {
					t.Error(err)
				}
			})
		}
		running.Wait()
	})
}

// The reference's client sends the descriptor once per place that names it: a
// refresh has the file in the preference and in the chosen mechanism. One claim
// answers both, and the next refresh is not confused by what is left over.
func TestDescriptorNamedTwice(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		files := newFiles(t)
		at := ours.Serve(t, as("server"), ref.Socket(t), func(s *grpc.Server) {
			networkservice.RegisterNetworkServiceServer(s, handler(func(ctx context.Context, conn *networkservice.Connection) error {
				f, err := rpc.ReceiveFile(ctx, conn.GetMechanism().GetParameters()[common.InodeURL])
				if err != nil {
					return err
				}
				return f.Close()
			}))
		})
		client := next.NewNetworkServiceClient(sendfd.NewClient(),
			networkservice.NewNetworkServiceClient(dialRef(t, as("client"), at.URL)))
		file := "file://" + files.write("workload")
		for refresh := range 3 {
			request := requestWith("id", file)
			request.Connection.Mechanism = kernel.New(file)
			conn, err := client.Request(soon(t), request)
			if err != nil {
				t.Fatalf("refresh %d: %v", refresh, err)
			}
			// An echo of the inode URL becomes the client's own file again.
			if got := conn.GetMechanism().GetParameters()[common.InodeURL]; got != file {
				t.Errorf("refresh %d: the client's file came back as %q, want %q", refresh, got, file)
			}
		}
	})
}

// A network namespace as the reference's kernel element sends it: an O_PATH
// descriptor, which cannot be entered as it is (setns says EBADF). Our forwarder's
// table reopens it.
func TestNetworkNamespaceFromReference(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		workload, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		clients, servers := newTable(t), newTable(t)
		inside, err := clients.Add(workload)
		if err != nil {
			t.Fatal(err)
		}
		at := ours.Serve(t, as("server"), ref.Socket(t), func(s *grpc.Server) {
			networkservice.RegisterNetworkServiceServer(s, handler(func(ctx context.Context, conn *networkservice.Connection) error {
				f, err := rpc.ReceiveFile(ctx, conn.GetMechanism().GetParameters()[common.InodeURL])
				if err != nil {
					return err
				}
				key, err := servers.Add(f)
				if err != nil {
					return err
				}
				defer servers.Release(key)
				return servers.Do(key, func() error {
					inode, err := os.Readlink("/proc/thread-self/ns/net")
					conn.Labels = map[string]string{"key": key, "inside": inode}
					return err
				})
			}))
		})
		client := next.NewNetworkServiceClient(
			kernelmech.NewClient(kernelmech.WithInterfaceName("nsm-1")),
			sendfd.NewClient(),
			networkservice.NewNetworkServiceClient(dialRef(t, as("client"), at.URL)),
		)
		err = clients.Do(inside, func() error {
			own, err := os.Readlink("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			conn, err := client.Request(soon(t), &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: "id"}})
			if err != nil {
				return err
			}
			if got := conn.GetLabels(); got["key"] != inside || got["inside"] != own {
				t.Errorf("namespace %s, %s arrived as %s, %s", inside, own, got["key"], got["inside"])
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func newTable(t *testing.T) *netns.Table {
	t.Helper()
	table, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

// handler is a NetworkService that answers with the request's connection, its
// mechanism being the first preference, after do has seen it.
type handler func(ctx context.Context, conn *networkservice.Connection) error

func (h handler) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	conn := request.GetConnection().Clone()
	conn.Mechanism = request.GetMechanismPreferences()[0].Clone()
	if err := h(ctx, conn); err != nil {
		return nil, err
	}
	return conn, nil
}

func (h handler) Close(context.Context, *networkservice.Connection) (*empty.Empty, error) {
	return &empty.Empty{}, nil
}

// answerWith sends the file at path with the reply, our way.
func answerWith(ctx context.Context, conn *networkservice.Connection, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	inode, err := rpc.InodeURL(f)
	if err != nil {
		return err
	}
	conn.GetMechanism().GetParameters()[common.InodeURL] = inode
	return rpc.SendFiles(ctx, f)
}

func requestWith(id, fileURL string) *networkservice.NetworkServiceRequest {
	return &networkservice.NetworkServiceRequest{
		Connection:           &networkservice.Connection{Id: id},
		MechanismPreferences: []*networkservice.Mechanism{kernel.New(fileURL)},
	}
}

// together makes all calls, atOnce at a time, and reports each failure. One of grpcfd's own is
// tried again: it closes a file that it sends twice, and reports the second time if its
// goroutine comes late (v1.1.4, SendFilename).
func together(t *testing.T, call func(id string) error) {
	t.Helper()
	var running sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i := range calls {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			id := fmt.Sprintf("connection %d", i)
			err := call(id)
			for range 10 {
				if err == nil || !strings.Contains(err.Error(), os.ErrClosed.Error()) {
					break
				}
				err = call(id)
			}
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	running.Wait()
}

// files are the files that the descriptors of a test belong to.
type files struct {
	t   *testing.T
	dir string
}

func newFiles(t *testing.T) files { return files{t, t.TempDir()} }

// write makes a file with the given content and returns its path.
func (f files) write(content string) string {
	path := filepath.Join(f.dir, content)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		f.t.Error(err)
	}
	return path
}

func contentOf(t *testing.T, path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(content)
}

func checkReply(t *testing.T, id, path string) error {
	if got, want := contentOf(t, path), "reply to "+id; got != want {
		return fmt.Errorf("the reply's file holds %q, want %q", got, want)
	}
	return nil
}

// pathOf is the path of a file URL.
func pathOf(t *testing.T, raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "file" {
		t.Errorf("%q is not a file URL", raw)
		return ""
	}
	return u.Path
}
