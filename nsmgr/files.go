// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// receiveNetNS claims the network namespaces that the request's KERNEL
// mechanisms name, to be sent on with it (protocol.md §2.14). Their names,
// inode://dev/ino, mean the same in every process of this node and stay.
func receiveNetNS(ctx context.Context, req *networkservice.NetworkServiceRequest) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
		}
	}()
	for _, url := range namedFiles(req, mechanism.TypeKernel) {
		if !strings.HasPrefix(url, "inode://") {
			return files, nserr.NoDescriptor.Errorf("inodeURL %q names a file of another process: send the open namespace and inode://<dev>/<ino>", url)
		}
		f, err := rpc.ReceiveFile(ctx, url)
		if err != nil {
			return files, err
		}
		files = append(files, f)
		if err := rpc.SenderFrom(ctx).MayHandOver(f); err != nil {
			return files, err
		}
	}
	return files, nil
}

// namedFiles returns what a request names its descriptors by, each once: a refresh names
// one as what it has and as what it would like. With a type only those of such mechanisms.
func namedFiles(req *networkservice.NetworkServiceRequest, only string) (urls []string) {
	seen := map[string]bool{"": true}
	for _, m := range slices.Concat(req.GetMechanismPreferences(), []*networkservice.Mechanism{req.GetConnection().GetMechanism()}) {
		if url := m.GetParameters()["inodeURL"]; (only == "" || m.GetType() == only) && !seen[url] {
			seen[url] = true
			urls = append(urls, url)
		}
	}
	return urls
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// receiveSocket claims the endpoint's Unix socket if its URL names one, and holds
// it until release is called.
func (m *Manager) receiveSocket(ctx context.Context, url string) (release func(), err error) {
	switch {
	case isInode(url):
		f, err := rpc.ReceiveFile(ctx, url)
		if err != nil {
			return nil, err
		}
		return m.config.Sockets.Hold(url, f), nil
	case strings.HasPrefix(url, "unix://"), strings.HasPrefix(url, "tcp://"), strings.HasPrefix(url, "inproc://"):
		return func() {}, nil
	case url == "":
		return nil, nserr.BadEndpoint.Errorf("the endpoint has no URL")
	}
	return nil, nserr.BadEndpoint.Errorf("endpoint URL %.80q is none of unix://, tcp:// and inode://", url)
}

func isInode(url string) bool { return strings.HasPrefix(url, "inode://") }
