// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Whoever is not let in is named, each once: an operator looks for who asks for too much.
func TestRefusedAreNamed(t *testing.T) {
	var log bytes.Buffer
	g := gated{&Manager{log: slog.New(slog.NewTextHandler(&log, nil))}}
	for range 3 {
		for _, caller := range []string{"spiffe://d/greedy", "spiffe://d/modest"} {
			g.refused(t.Context(), caller, &networkservice.NetworkServiceRequest{}, nserr.Busy.Errorf("too many wait already"))
		}
	}
	for _, caller := range []string{"spiffe://d/greedy", "spiffe://d/modest"} {
		if n := strings.Count(log.String(), "spiffe_id="+caller); n != 1 {
			t.Errorf("%s is named %d times, want once: %s", caller, n, log.String())
		}
	}
}

// A Request that is refused takes one descriptor with it for each namespace that it names,
// however often: the next one is that of somebody else who waits.
func TestRefusedTakesItsOwn(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "namespace")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	url, err := rpc.InodeURL(f)
	if err != nil {
		t.Fatal(err)
	}
	kernel := &networkservice.Mechanism{Type: mechanism.TypeKernel, Parameters: map[string]string{"inodeURL": url}}
	req := &networkservice.NetworkServiceRequest{
		Connection:           &networkservice.Connection{Mechanism: kernel},
		MechanismPreferences: []*networkservice.Mechanism{kernel},
	}
	local := rpc.NewLocal(rpc.LocalOptions{})
	defer local.Close()
	rpc.RegisterNetworkService(local, refusing{gated{&Manager{log: slog.New(slog.DiscardHandler)}}})
	const others = 2
	ctx := rpc.WithFiles(t.Context(), slices.Repeat([]*os.File{f}, 1+others)...)
	got, err := networkservice.NewNetworkServiceClient(local.Dial(rpc.LocalCaller{})).Request(ctx, req)
	if n := got.GetLabels()["left"]; err != nil || n != strconv.Itoa(others) {
		t.Errorf("%s descriptors are left of those of %d others: %v", n, others, err)
	}
}

// refusing refuses every Request, and tells how many of its descriptors are left then.
type refusing struct{ gated }

func (r refusing) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	r.refused(ctx, "spiffe://d/greedy", req, nserr.Busy)
	left := 0
	ctx, cancel := context.WithCancel(ctx)
	cancel() // to claim what is there
	for {
		f, err := rpc.ReceiveFile(ctx, req.GetConnection().GetMechanism().GetParameters()["inodeURL"])
		if err != nil {
			return &networkservice.Connection{Labels: map[string]string{"left": strconv.Itoa(left)}}, nil
		}
		_ = f.Close()
		left++
	}
}
