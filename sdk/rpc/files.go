// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/nserr"
)

// link is one side's view of the descriptors that pass over a connection.
type link struct {
	send  func([]*os.File) error // duplicates files and sends them off
	inbox *inbox                 // what the other side sent

	sender Sender // zero within the process
}

// noLink is the answer on connections that cannot carry descriptors.
func noLink() error {
	return nserr.NoDescriptor.Errorf("descriptors pass over Unix sockets only")
}

type filesKey struct{}

// WithFiles makes calls with the returned context send files ahead of the request,
// which names each by its InodeURL. The files stay the caller's and must stay open
// until the call returns.
func WithFiles(ctx context.Context, files ...*os.File) context.Context {
	return context.WithValue(ctx, filesKey{}, files)
}

// sendWith sends the files of WithFiles, if any, over the connection with the given AuthInfo.
func sendWith(ctx context.Context, info credentials.AuthInfo) error {
	files, _ := ctx.Value(filesKey{}).([]*os.File)
	if len(files) == 0 {
		return nil
	}
	l := linkOf(info)
	if l == nil {
		return noLink()
	}
	return l.send(files)
}

// SendFiles sends files ahead of the reply to the call that is being served. The
// files stay the caller's and may be closed as soon as SendFiles returns.
func SendFiles(ctx context.Context, files ...*os.File) error {
	l := servedLink(ctx)
	if l == nil {
		return noLink()
	}
	return l.send(files)
}

// ReceiveFile claims the descriptor that the request being served names with an
// inode URL. It moves out of the connection and is the caller's to close: one sent,
// one claimed. A message that names the same inode twice is worth one claim.
//
// Since a descriptor may come after the message, ReceiveFile waits for it, two
// seconds at most; then the error is nserr.NoDescriptor, or nserr.Busy if it had come and
// was closed lately: then the caller has made no mistake, but this server has more to do
// than it can.
func ReceiveFile(ctx context.Context, inodeURL string) (*os.File, error) {
	f, err := receive(ctx, servedLink(ctx), inodeURL)
	if errors.Is(err, errSpilled) {
		return nil, nserr.Busy.Errorf("there is more to do than can be done: %w", err).WithRetry(time.Second)
	}
	return f, err
}

// ReceiveReplyFile is ReceiveFile for the descriptors of a reply, after a call made
// with grpc.Peer(p).
func ReceiveReplyFile(ctx context.Context, p *peer.Peer, inodeURL string) (*os.File, error) {
	return receive(ctx, linkOf(p.AuthInfo), inodeURL)
}

// DiscardFile closes the descriptor that came with the request being served and
// has the inode URL, if one did: peers send theirs with every refresh and Close,
// whether or not it is wanted. Unlike ReceiveFile it waits for nothing.
func DiscardFile(ctx context.Context, inodeURL string) { discard(servedLink(ctx), inodeURL) }

// DiscardReplyFile is DiscardFile for the descriptors of a reply.
func DiscardReplyFile(p *peer.Peer, inodeURL string) { discard(linkOf(p.AuthInfo), inodeURL) }

func discard(l *link, inodeURL string) {
	i, err := parseInodeURL(inodeURL)
	if err != nil || l == nil {
		return
	}
	if fd := l.inbox.take(i); fd != none {
		_ = unix.Close(fd)
	}
}

func receive(ctx context.Context, l *link, inodeURL string) (*os.File, error) {
	i, err := parseInodeURL(inodeURL)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, noLink()
	}
	return l.inbox.claim(ctx, i)
}

func servedLink(ctx context.Context) *link {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	return linkOf(p.AuthInfo)
}
