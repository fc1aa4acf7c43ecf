// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls the virtqueue callbacks of virtio-rpmsg devices on UML from a workqueue.
 *
 * virtio_uml calls them in hard-irq context. virtio_rpmsg_bus takes mutexes and probes devices there: it was written
 * for remoteproc, which calls from a thread. So this module replaces the config ops of such a device while a driver is
 * bound to it. It must be loaded before that driver, and logs status and reset, which virtio_uml tells no back end.
 *
 * It cannot be unloaded: bound devices point into it.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/workqueue.h>

#define VQ_DEFER_QUEUES 2 /* as many as an rpmsg device has */

struct vq_defer_queue {
	struct work_struct work;
	struct virtqueue *vq;
	vq_callback_t *callback;
};

struct vq_defer {
	struct virtio_config_ops ops;
	const struct virtio_config_ops *orig;
	struct vq_defer_queue queues[VQ_DEFER_QUEUES];
};

static struct workqueue_struct *vq_defer_wq;

static struct vq_defer *to_vq_defer(struct virtio_device *vdev)
{
	return container_of(vdev->config, struct vq_defer, ops);
}

static void vq_defer_work(struct work_struct *work)
{
	struct vq_defer_queue *queue = container_of(work, struct vq_defer_queue, work);
	vq_callback_t *callback = READ_ONCE(queue->callback);

	if (callback)
		callback(queue->vq);
}

static void vq_defer_callback(struct virtqueue *vq)
{
	struct vq_defer_queue *queue = &to_vq_defer(vq->vdev)->queues[vq->index];

	queue->vq = vq;
	queue_work(vq_defer_wq, &queue->work);
}

/* From here on a callback that is still queued, or is queued late, does nothing. */
static void vq_defer_stop(struct vq_defer *defer)
{
	int i;

	for (i = 0; i < VQ_DEFER_QUEUES; i++) {
		WRITE_ONCE(defer->queues[i].callback, NULL);
		cancel_work_sync(&defer->queues[i].work);
	}
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int vq_defer_find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[],
			     struct virtqueue_info vqs_info[], struct irq_affinity *desc)
{
	struct virtqueue_info deferred[VQ_DEFER_QUEUES];
	struct vq_defer *defer = to_vq_defer(vdev);
	unsigned int i;
	int ret;

	if (nvqs > VQ_DEFER_QUEUES)
		return -EINVAL;

	for (i = 0; i < nvqs; i++) {
		defer->queues[i].callback = vqs_info[i].callback;
		deferred[i] = vqs_info[i];
		if (deferred[i].callback)
			deferred[i].callback = vq_defer_callback;
	}

	ret = defer->orig->find_vqs(vdev, nvqs, vqs, deferred, desc);
	if (ret)
		vq_defer_stop(defer);
	return ret;
}
#else
static int vq_defer_find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[],
			     vq_callback_t *callbacks[], const char * const names[], const bool *ctx,
			     struct irq_affinity *desc)
{
	vq_callback_t *deferred[VQ_DEFER_QUEUES];
	struct vq_defer *defer = to_vq_defer(vdev);
	unsigned int i;
	int ret;

	if (nvqs > VQ_DEFER_QUEUES)
		return -EINVAL;

	for (i = 0; i < nvqs; i++) {
		defer->queues[i].callback = callbacks[i];
		deferred[i] = callbacks[i] ? vq_defer_callback : NULL;
	}

	ret = defer->orig->find_vqs(vdev, nvqs, vqs, deferred, names, ctx, desc);
	if (ret)
		vq_defer_stop(defer);
	return ret;
}
#endif

static void vq_defer_del_vqs(struct virtio_device *vdev)
{
	struct vq_defer *defer = to_vq_defer(vdev);

	vq_defer_stop(defer);
	defer->orig->del_vqs(vdev);
	vq_defer_stop(defer); /* what an interrupt queued meanwhile */
}

static void vq_defer_set_status(struct virtio_device *vdev, u8 status)
{
	dev_info(&vdev->dev, "vq_defer: status 0x%02x\n", status);
	to_vq_defer(vdev)->orig->set_status(vdev, status);
}

static void vq_defer_reset(struct virtio_device *vdev)
{
	dev_info(&vdev->dev, "vq_defer: reset\n");
	to_vq_defer(vdev)->orig->reset(vdev);
}

static bool vq_defer_wanted(struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;

	return vdev->id.device == VIRTIO_ID_RPMSG && parent && parent->driver &&
	       !strcmp(parent->driver->name, "virtio-uml");
}

static int vq_defer_wrap(struct virtio_device *vdev)
{
	struct vq_defer *defer;
	int i;

	defer = kzalloc(sizeof(*defer), GFP_KERNEL);
	if (!defer)
		return -ENOMEM;

	for (i = 0; i < VQ_DEFER_QUEUES; i++)
		INIT_WORK(&defer->queues[i].work, vq_defer_work);

	defer->orig = vdev->config;
	defer->ops = *vdev->config;
	defer->ops.find_vqs = vq_defer_find_vqs;
	defer->ops.del_vqs = vq_defer_del_vqs;
	defer->ops.set_status = vq_defer_set_status;
	defer->ops.reset = vq_defer_reset;
	vdev->config = &defer->ops;
	return 0;
}

static void vq_defer_unwrap(struct virtio_device *vdev)
{
	struct vq_defer *defer = to_vq_defer(vdev);

	vdev->config = defer->orig;
	kfree(defer);
}

static int vq_defer_notify(struct notifier_block *nb, unsigned long action, void *data)
{
	struct virtio_device *vdev = dev_to_virtio(data);
	bool wrapped = vdev->config->find_vqs == vq_defer_find_vqs;

	switch (action) {
	case BUS_NOTIFY_BIND_DRIVER:
		if (!wrapped && vq_defer_wanted(vdev) && vq_defer_wrap(vdev))
			dev_err(&vdev->dev, "vq_defer: out of memory\n");
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
		if (wrapped)
			vq_defer_unwrap(vdev);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block vq_defer_nb = {
	.notifier_call = vq_defer_notify,
};

/* A driver of no device: virtio_bus is not exported, but a registered driver points to it. */
static const struct virtio_device_id vq_defer_ids[] = {
	{ 0 },
};

static int vq_defer_probe(struct virtio_device *vdev)
{
	return -ENODEV;
}

static struct virtio_driver vq_defer_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = vq_defer_ids,
	.probe = vq_defer_probe,
};

static int __init vq_defer_init(void)
{
	int ret;

	vq_defer_wq = alloc_ordered_workqueue(KBUILD_MODNAME, 0);
	if (!vq_defer_wq)
		return -ENOMEM;

	ret = register_virtio_driver(&vq_defer_driver);
	if (ret)
		goto destroy_wq;

	ret = bus_register_notifier(vq_defer_driver.driver.bus, &vq_defer_nb);
	if (ret)
		goto unregister_driver;

	return 0;

unregister_driver:
	unregister_virtio_driver(&vq_defer_driver);
destroy_wq:
	destroy_workqueue(vq_defer_wq);
	return ret;
}
module_init(vq_defer_init);

MODULE_DESCRIPTION("Virtqueue callbacks of virtio-rpmsg on UML from a workqueue");
MODULE_LICENSE("GPL");
