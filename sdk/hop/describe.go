// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/internal/buildinfo"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/peer"
)

// describeTimeout bounds what a hop waits for the next one's description when
// its caller sets no limit.
const describeTimeout = 10 * time.Second

// Describe asks the next hop what it knows of a connection, which has the given
// id there, and what the hops behind it know. A hop that does not tell is no
// error: the answer says so in the place of what the named forwarder, the first
// one from there on, has in its kernel.
func Describe(ctx context.Context, p *peer.Peer, id, forwarder string) *adminv1.WireDescription {
	limit := describeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline) * 3 / 4 // the rest is for what this hop tells itself
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d, err := adminv1.NewAdminClient(p.Conn()).DescribeWire(ctx, &adminv1.DescribeWireRequest{Id: id})
	if err == nil {
		return d
	}
	why := err.Error()
	if status.Code(err) == codes.Unimplemented {
		why = p.URL() + " does not serve nsm.admin.v1"
	}
	return &adminv1.WireDescription{Kernel: []*adminv1.KernelObjects{{Forwarder: forwarder, Error: why}}}
}

// BuildVersion is the running build as the admin API tells it.
func BuildVersion() *adminv1.BuildVersion {
	b := buildinfo.Read()
	return &adminv1.BuildVersion{Version: b.Version, Revision: b.Revision, Modified: b.Modified, Go: b.Go, Platform: b.Platform}
}
